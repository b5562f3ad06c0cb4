//! Draws which images are based on which.

use std::collections::{BTreeMap, BTreeSet};

use sm_model::vdi::{Health, NodeKind, TreeNode};
use sm_model::{Bytes, VdiUuid};

use crate::output::{Align, Style, Table, escape};

/// The strokes of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strokes {
    fork: &'static str,
    last: &'static str,
    through: &'static str,
    gap: &'static str,
}

/// For terminals that show Unicode.
pub(crate) const UNICODE: Strokes =
    Strokes { fork: "├─ ", last: "└─ ", through: "│  ", gap: "   " };
/// For all others.
pub(crate) const ASCII: Strokes = Strokes { fork: "|- ", last: "`- ", through: "|  ", gap: "   " };

/// The strokes that the locale of this process can show.
pub(crate) fn strokes_of_locale() -> Strokes {
    // The first that is set and not empty counts, as in setlocale(3).
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_default()
        .to_ascii_lowercase();
    if locale.contains("utf-8") || locale.contains("utf8") { UNICODE } else { ASCII }
}

/// The whole forest, one line for each node.
pub(crate) fn draw(nodes: &[TreeNode], strokes: Strokes, style: Style) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("VIRTUAL", Align::Right),
        ("PHYSICAL", Align::Right),
        ("UUID", Align::Left),
        ("HEALTH", Align::Left),
    ]);
    let known: BTreeSet<VdiUuid> = nodes.iter().map(|node| node.uuid).collect();
    let mut children: BTreeMap<VdiUuid, Vec<&TreeNode>> = BTreeMap::new();
    let mut roots: Vec<&TreeNode> = Vec::new();
    for node in nodes {
        match node.parent.filter(|parent| known.contains(parent)) {
            Some(parent) => children.entry(parent).or_default().push(node),
            None => roots.push(node),
        }
    }
    let mut canvas = Canvas { table: &mut table, strokes, children, drawn: BTreeSet::new() };
    for root in roots {
        canvas.draw(root);
    }
    // Damage can close a circle: no root leads there, and no node may be left out.
    for node in nodes {
        canvas.draw(node);
    }
    table.render(style)
}

struct Canvas<'a> {
    table: &'a mut Table,
    strokes: Strokes,
    children: BTreeMap<VdiUuid, Vec<&'a TreeNode>>,
    drawn: BTreeSet<VdiUuid>,
}

impl<'a> Canvas<'a> {
    /// A node and all that is based on it. A stack of our own: chains can be deep.
    fn draw(&mut self, root: &'a TreeNode) {
        let mut stack = vec![(root, String::new(), String::new())];
        while let Some((node, branch, indent)) = stack.pop() {
            if !self.drawn.insert(node.uuid) {
                continue;
            }
            self.table.row(cells(node, &branch, root.uuid == node.uuid));
            let children = self.children.get(&node.uuid).map_or(&[][..], Vec::as_slice);
            for (n, child) in children.iter().enumerate().rev() {
                let last = n + 1 == children.len();
                let (stroke, below) = if last {
                    (self.strokes.last, self.strokes.gap)
                } else {
                    (self.strokes.fork, self.strokes.through)
                };
                stack.push((child, format!("{indent}{stroke}"), format!("{indent}{below}")));
            }
        }
    }
}

fn cells(node: &TreeNode, branch: &str, is_root: bool) -> [String; 6] {
    let kind = match node.kind {
        NodeKind::Leaf => "disk",
        NodeKind::Snapshot => "snapshot",
        NodeKind::BaseCopy => "base copy",
    };
    let name = match (node.kind, node.name.as_str()) {
        (NodeKind::BaseCopy, "") => "(base copy)".to_owned(),
        (_, "") => "(no name)".to_owned(),
        (_, name) => escape(name),
    };
    let mut health = health_text(&node.health);
    if let Some(parent) = node.parent.filter(|_| is_root) {
        let fact = format!("based on {parent}, which is missing or in a circle");
        health = if node.health == Health::Ok { fact } else { format!("{health}; {fact}") };
    }
    [
        format!("{branch}{name}"),
        kind.to_owned(),
        node.virtual_size.to_string(),
        node.physical_utilisation.to_string(),
        node.uuid.to_string(),
        health,
    ]
}

/// Health in a few words.
pub(crate) fn health_text(health: &Health) -> String {
    match health {
        Health::Ok => "ok".to_owned(),
        Health::Degraded { reason } => format!("degraded: {}", escape(reason)),
        Health::Quarantined { reason } => format!("quarantined: {}", escape(reason)),
    }
}

/// A size for people, with what it is of the whole where that makes sense.
pub(crate) fn share(part: Bytes, whole: Bytes) -> String {
    if whole.0 == 0 {
        return part.to_string();
    }
    let percent = u128::from(part.0) * 100 / u128::from(whole.0);
    format!("{part} of {whole} ({percent}%)")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn node(n: u128, parent: Option<u128>, kind: NodeKind, name: &str) -> TreeNode {
        TreeNode {
            uuid: Uuid::from_u128(n).into(),
            parent: parent.map(|parent| Uuid::from_u128(parent).into()),
            kind,
            name: name.into(),
            virtual_size: Bytes::gib(10),
            physical_utilisation: Bytes::mib(n as u64),
            health: Health::Ok,
        }
    }

    /// Name and health of each line: the columns between are the table's business.
    fn lines(nodes: &[TreeNode], strokes: Strokes) -> Vec<String> {
        draw(nodes, strokes, Style::plain())
            .lines()
            .skip(1)
            .map(|line| line.split("  disk").next().unwrap_or(line))
            .map(|line| line.split("  base copy").next().unwrap_or(line))
            .map(|line| line.split("  snapshot").next().unwrap_or(line).trim_end().to_owned())
            .collect()
    }

    fn family() -> Vec<TreeNode> {
        vec![
            node(1, None, NodeKind::BaseCopy, ""),
            node(2, Some(1), NodeKind::BaseCopy, ""),
            node(3, Some(2), NodeKind::Leaf, "web"),
            node(4, Some(2), NodeKind::Snapshot, "before"),
            node(5, Some(1), NodeKind::Leaf, "clone\n"),
            node(6, None, NodeKind::Leaf, ""),
        ]
    }

    #[test]
    fn branches_show_who_is_based_on_whom() {
        assert_eq!(
            lines(&family(), UNICODE),
            [
                "(base copy)",
                "├─ (base copy)",
                "│  ├─ web",
                "│  └─ before",
                "└─ clone\\n",
                "(no name)"
            ]
        );
        assert_eq!(
            lines(&family(), ASCII),
            [
                "(base copy)",
                "|- (base copy)",
                "|  |- web",
                "|  `- before",
                "`- clone\\n",
                "(no name)"
            ]
        );
    }

    #[test]
    fn a_line_has_kind_sizes_and_uuid() {
        assert_eq!(
            draw(&family()[5..], ASCII, Style::plain()),
            "NAME       KIND  VIRTUAL  PHYSICAL  UUID                                  HEALTH\n\
             (no name)  disk    10GiB      6MiB  00000000-0000-0000-0000-000000000006  ok\n"
        );
    }

    #[test]
    fn damaged_nodes_are_drawn_with_the_reason() {
        let mut bad = node(1, Some(9), NodeKind::Leaf, "orphan");
        bad.health = Health::Quarantined { reason: "no footer".into() };
        let circle = [
            bad,
            node(2, Some(3), NodeKind::BaseCopy, ""),
            node(3, Some(2), NodeKind::Leaf, "chasing"),
        ];
        let text = draw(&circle, ASCII, Style::plain());
        assert!(text.contains("quarantined: no footer; based on 00000000-0000-0000-0000-000000000009, which is missing"));
        assert!(text.contains("`- chasing"));
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_deep_chain_does_not_exhaust_the_stack() {
        let nodes: Vec<TreeNode> =
            (1..1000).map(|n| node(n, (n > 1).then(|| n - 1), NodeKind::BaseCopy, "")).collect();
        assert_eq!(draw(&nodes, ASCII, Style::plain()).lines().count(), 1000);
    }
}
