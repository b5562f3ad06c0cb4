//! `docs/operations.md`, from the table of operations and their schemas.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};
use sm_model::operation::OPERATIONS;

use crate::failure::{Doing, Result};

const HEAD: &str = "\
<!-- Written by `cargo xtask docs` from sm-core/model. Change that, not this. -->

# Operations

A driver is asked for one operation at a time: its name, a request in JSON, and a reply in JSON.
The schemas below are those of `sm-core/model`; a field that is not marked *required* may be
absent, and fields that a reader does not know are ignored.

Every mutating operation carries an operation id. The same id gets the same answer, also after a
crash between doing and answering; the answer says whether it was done now (`created`, `modified`)
or before (`already`).

";

/// Types that more than one operation uses, by name.
type Types = BTreeMap<String, Value>;

pub(crate) fn document() -> Result<String> {
    let mut types = Types::new();
    let mut overview = String::new();
    let mut details = String::new();
    for row in OPERATIONS {
        let mutating = if row.mutating { "yes" } else { "no" };
        let smapi = row.smapi.map_or_else(|| "-".to_owned(), |name| format!("`{name}`"));
        let name = row.name;
        let summary = row.summary.trim();
        line(&mut overview, &format!("| [`{name}`](#{name}) | {mutating} | {smapi} | {summary} |"));
        line(&mut details, &format!("## `{name}`\n\n{summary}\n"));
        for (title, schema) in
            [("Request", (row.request_schema)()), ("Reply", (row.reply_schema)())]
        {
            let schema = serde_json::to_value(schema).doing(|| "write a schema".to_owned())?;
            collect(&schema, &mut types);
            let type_name = schema.get("title").and_then(Value::as_str).unwrap_or(title);
            let _ = write!(details, "{title} `{type_name}`");
            details.push_str(&fields(&schema));
            details.push('\n');
        }
    }
    let mut text = String::from(HEAD);
    text.push_str("| operation | mutating | SMAPI | what it does |\n|---|---|---|---|\n");
    text.push_str(&overview);
    text.push('\n');
    text.push_str(&details);
    text.push_str("# Types\n\n");
    for (name, schema) in &types {
        line(&mut text, &format!("## `{name}`\n"));
        if let Some(said) = description(schema) {
            line(&mut text, &format!("{said}\n"));
        }
        text.push_str(&shape(schema));
        text.push('\n');
    }
    Ok(text.trim_end().to_owned() + "\n")
}

fn line(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

fn collect(schema: &Value, types: &mut Types) {
    let defined = schema.get("$defs").and_then(Value::as_object);
    for (name, schema) in defined.into_iter().flatten() {
        types.insert(name.clone(), schema.clone());
    }
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object().filter(|properties| !properties.is_empty())
}

/// A table of the fields of an object.
fn fields(schema: &Value) -> String {
    let Some(properties) = properties(schema) else {
        // A reply can be one of the types below, without fields of its own.
        let shape = shape(schema);
        return if shape.is_empty() { ": no fields\n".to_owned() } else { format!("\n\n{shape}") };
    };
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut text = String::from("\n\n| field | type | meaning |\n|---|---|---|\n");
    for (name, schema) in properties {
        let needed = if required.contains(&name.as_str()) { ", required" } else { "" };
        let said = description(schema).unwrap_or_default();
        line(&mut text, &format!("| `{name}` | {}{needed} | {said} |", type_text(schema)));
    }
    text
}

/// What a named type looks like.
fn shape(schema: &Value) -> String {
    if properties(schema).is_some() {
        return fields(schema).trim_start().to_owned();
    }
    let Some(variants) = variants(schema) else {
        return match type_text(schema) {
            text if text == "object" || text == "anything" => String::new(),
            text => format!("In JSON: {text}\n"),
        };
    };
    let mut text = String::new();
    for variant in variants {
        let said = description(variant).map(|said| format!(": {said}")).unwrap_or_default();
        line(&mut text, &format!("- {}{said}", variant_text(variant)));
    }
    text
}

fn variants(schema: &Value) -> Option<&Vec<Value>> {
    ["oneOf", "anyOf"].iter().find_map(|key| schema.get(key)?.as_array())
}

fn variant_text(variant: &Value) -> String {
    let Some(properties) = properties(variant) else { return type_text(variant) };
    let fields: Vec<String> = properties
        .iter()
        .map(|(name, schema)| match schema.get("const") {
            Some(value) => format!("`{name}`: `{value}`"),
            None => format!("`{name}`: {}", type_text(schema)),
        })
        .collect();
    format!("{{ {} }}", fields.join(", "))
}

/// A type in a few words.
fn type_text(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let name = name.rsplit('/').next().unwrap_or(name);
        return format!("[`{name}`](#{})", name.to_lowercase());
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" or ");
    }
    if let Some(variants) = variants(schema) {
        let texts: Vec<String> = variants.iter().map(type_text).collect();
        return texts.join(" or ");
    }
    match schema.get("type") {
        Some(Value::String(kind)) => simple_type(kind, schema),
        Some(Value::Array(kinds)) => {
            let kinds = kinds.iter().filter_map(Value::as_str);
            kinds.map(|kind| simple_type(kind, schema)).collect::<Vec<_>>().join(" or ")
        }
        _ => "anything".to_owned(),
    }
}

fn simple_type(kind: &str, schema: &Value) -> String {
    match (kind, schema.get("items"), schema.get("additionalProperties")) {
        ("array", Some(items), _) => format!("list of {}", type_text(items)),
        ("object", _, Some(values @ Value::Object(_))) => {
            format!("map of text to {}", type_text(values))
        }
        ("string", _, _) => match schema.get("format").and_then(Value::as_str) {
            Some(format) => format!("text ({format})"),
            None => "text".to_owned(),
        },
        ("boolean", _, _) => "true or false".to_owned(),
        ("integer", _, _) => "whole number".to_owned(),
        (other, _, _) => other.to_owned(),
    }
}

/// One line of prose that can stand in a table, without the links of rustdoc.
fn description(schema: &Value) -> Option<String> {
    let said = schema.get("description")?.as_str()?;
    let said = said.split("\n\n").collect::<Vec<_>>().join(" ").replace('\n', " ");
    let said = said.replace("[`", "`").replace("`]", "`").replace('|', "\\|");
    Some(said)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_operation_has_a_row_and_a_section() {
        let text = document().unwrap();
        for row in OPERATIONS {
            let name = row.name;
            assert!(text.contains(&format!("| [`{name}`](#{name}) |")), "{name}");
            assert!(text.contains(&format!("\n## `{name}`\n")), "{name}");
        }
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
    }

    #[test]
    fn every_link_leads_to_a_heading() {
        let text = document().unwrap();
        let headings: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("## `")?.strip_suffix('`'))
            .map(str::to_lowercase)
            .collect();
        for link in text.split("](#").skip(1) {
            let anchor = link.split(')').next().unwrap();
            assert!(headings.iter().any(|heading| heading == anchor), "{anchor}");
        }
    }

    #[test]
    fn types_are_told_in_words() {
        for (schema, text) in [
            (json!({"type": "string", "format": "uuid"}), "text (uuid)"),
            (json!({"type": ["integer", "null"]}), "whole number or null"),
            (json!({"$ref": "#/$defs/Bytes"}), "[`Bytes`](#bytes)"),
            (json!({"type": "array", "items": {"type": "boolean"}}), "list of true or false"),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                "map of text to text",
            ),
            (json!({"enum": ["a", "b"]}), "`\"a\"` or `\"b\"`"),
        ] {
            assert_eq!(type_text(&schema), text, "{schema}");
        }
    }
}
