//! What is written for browsers, CI systems and documents, read by those who read it elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use scraper::{ElementRef, Html, Selector};
use sm_conformance::{Certificate, State, page};

use crate::{config, faulty_driver, folder, program, run, said};

fn all<'a>(page: &'a Html, selector: &str) -> Vec<ElementRef<'a>> {
    page.select(&Selector::parse(selector).unwrap()).collect()
}

fn text(element: &ElementRef<'_>) -> String {
    element.text().collect()
}

/// What must be true of each page: no error of syntax, nothing from outside, nothing to run.
fn parsed(html: &str) -> Html {
    let page = Html::parse_document(html);
    assert_eq!(page.errors, Vec::<String>::new());
    for forbidden in ["script", "link", "iframe", "object", "img", "form", "base", "[src]"] {
        assert!(all(&page, forbidden).is_empty(), "{forbidden} in a page");
    }
    for handler in page.tree.values().filter_map(scraper::Node::as_element) {
        assert!(handler.attrs().all(|(name, _)| !name.starts_with("on")), "{handler:?}");
    }
    let style: String = all(&page, "style").iter().map(text).collect();
    for fetched in ["url(", "@import", "http"] {
        assert!(!style.contains(fetched), "{fetched} in the style");
    }
    assert_eq!(all(&page, "html[lang=en] > head > title").len(), 1);
    assert_eq!(all(&page, "h1").len(), 1);
    let viewport = all(&page, "meta[name=viewport]");
    assert_eq!(viewport[0].attr("content"), Some("width=device-width, initial-scale=1"));
    let policy = all(&page, "meta[http-equiv=Content-Security-Policy]");
    assert_eq!(policy[0].attr("content"), Some("default-src 'none'; style-src 'unsafe-inline'"));
    let ids: Vec<&str> = all(&page, "[id]").iter().filter_map(|e| e.attr("id")).collect();
    let once: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), once.len(), "an id stands twice: {ids:?}");
    for link in all(&page, "a") {
        let to = link.attr("href").unwrap();
        assert!(once.contains(to.strip_prefix('#').unwrap()), "{to} leads nowhere");
    }
    page
}

/// A run in which one check fails, one holds and one does not apply.
fn mixed(at: &Path, more: &[&str]) -> (Output, Certificate) {
    let sr = config("defect = \"snapshot-live\"");
    let only = ["--only", "E02", "--only", "C10", "--only", "E19", "--quiet"];
    let (output, certificate) = run(at, &faulty_driver(), &sr, &[&only, more].concat());
    let certificate = certificate.unwrap_or_else(|| panic!("{}", said(&output)));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    (output, certificate)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_page_of_a_run_has_a_failure_with_its_log_and_how_to_see_it_again() {
    let folder = folder();
    let (_, mut certificate) = mixed(folder.path(), &[]);
    let html = read(&folder.path().join("out/report.html"));
    let page = parsed(&html);
    assert!(html.contains("1 passed, 1 failed, 1 skipped"));
    let failed = all(&page, "article#E02.fail");
    let told = text(&failed[0]);
    for part in
        ["snap.frozen_under_writes", "must be block", "DRV-SNAP-8", "sm-conformance replay "]
    {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let log = text(&all(&page, "article#E02 details[open] pre")[0]);
    assert!(log.contains("vdi_snapshot {") && log.contains("verify "), "{log}");
    // A square for each check, with its state in words too.
    let square = |id: &str| all(&page, &format!(".squares a[href='#{id}']"))[0].attr("title");
    assert_eq!(square("E02"), Some("E02 snap.frozen_under_writes: FAIL"));
    assert_eq!(square("C10"), Some("C10 vdi.delete_ok: PASS"));
    assert_eq!(square("E19"), Some("E19 tree.invariants: NOT-APPLICABLE"));
    // The two pictures of times have their figures as text.
    let pictures = all(&page, "svg[role=img]");
    assert_eq!(pictures.len(), 2);
    assert!(text(&pictures[0]).contains(" ms") && text(&pictures[1]).contains("vdi_snapshot"));
    // Whatever a driver says is text.
    let hostile = "</pre><script>alert(1)</script><img src=http://example.org/x>";
    certificate.driver.name = hostile.into();
    for entry in &mut certificate.results {
        entry.reason = Some(hostile.into());
        entry.replay = Some(hostile.into());
    }
    let logs = BTreeMap::from([("E02".to_owned(), hostile.repeat(2000))]);
    let page = parsed(&page::run(&certificate, &logs));
    assert!(text(&all(&page, "h1")[0]).contains(hostile));
}

#[test]
fn drivers_stand_side_by_side_and_the_document_changes_only_with_a_verdict() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).join("out/certificate.json");
    for (name, seed) in [("one", "1"), ("two", "2")] {
        mixed(&folder.path().join(name), &["--seed", seed]);
    }
    let matrix = |names: &[&str], more: &[&str]| {
        let mut command = program();
        command.arg("matrix").args(names.iter().map(|name| at(name))).args(more);
        command.output().unwrap()
    };
    let html = matrix(&["one", "two"], &["--not-run", "lvm=needs a disk"]);
    let page = parsed(&said(&html));
    let rows: Vec<Vec<String>> = all(&page, "#matrix tr")
        .iter()
        .map(|row| row.child_elements().map(|cell| text(&cell)).collect())
        .collect();
    let row = |begin: &str| rows.iter().find(|row| row[0].starts_with(begin)).unwrap().clone();
    assert_eq!(row("group")[1..3], ["faulty 0.1.0", "faulty 0.1.0"]);
    assert_eq!(row("level")[1..3], ["none", "none"]);
    assert_eq!(row("C ")[1..3], ["✓ 1/1", "✓ 1/1"]);
    assert_eq!(row("E ")[1..3], ["✗ 0/1", "✗ 0/1"]);
    assert_eq!(row("A ")[1..3], ["", ""]);
    assert_eq!(text(&all(&page, "#not-run tr")[0]), "lvmneeds a disk");

    let markdown = |name: &str| said(&matrix(&[name], &["--markdown", "--not-run", "a|b=c"]));
    let one = markdown("one");
    assert_eq!(one, markdown("two"), "seed, times and identifiers show");
    assert!(one.contains("| E Snapshots and clones | ✗ 0/1 |"), "{one}");
    assert!(one.contains("- FAIL E02: snap.frozen_under_writes\n"), "{one}");
    assert!(one.contains("- NOT-APPLICABLE E19: the driver does not declare vdi_tree"), "{one}");
    assert!(one.ends_with("| a\\|b | c |\n"), "{one}");

    let text = read(&at("one")).replacen("\"FAIL\"", "\"PASS\"", 1);
    std::fs::write(at("one"), text).unwrap();
    let changed = matrix(&["one", "two"], &[]);
    assert_eq!(changed.status.code(), Some(2));
    assert!(said(&changed).contains("was changed after it was written"), "{}", said(&changed));
    assert_eq!(matrix(&["two"], &["--not-run", "lvm"]).status.code(), Some(2));
}

#[test]
fn the_harness_of_perl_reads_the_tap() {
    let folder = folder();
    mixed(folder.path(), &[]);
    let tap = folder.path().join("out/report.tap");
    let prove = |file: &Path| {
        let read = Command::new("prove").args(["--verbose", "--exec", "cat"]).arg(file).output();
        read.unwrap_or_else(|error| panic!("prove, of the package perl, does not run: {error}"))
    };
    let failed = prove(&tap);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("Failed 1/3 subtests"), "{}", said(&failed));
    assert!(said(&failed).contains("less 1 skipped subtest: 1 okay"), "{}", said(&failed));
    assert!(!said(&failed).contains("Parse errors"), "{}", said(&failed));

    let mut certificate =
        Certificate::verify(&read(&tap.with_file_name("certificate.json"))).unwrap();
    for entry in &mut certificate.results {
        if entry.state == State::Fail {
            entry.state = State::Waived;
            entry.reason = Some("a # in it\nand a line".into());
        }
    }
    std::fs::write(&tap, sm_conformance::report::tap(&certificate)).unwrap();
    let waived = prove(&tap);
    assert_eq!(waived.status.code(), Some(0), "{}", said(&waived));
}

fn openssl(arguments: &[&str], folder: &Path) {
    let done = Command::new("openssl").args(arguments).current_dir(folder).output();
    let done = done.unwrap_or_else(|error| panic!("openssl does not run: {error}"));
    assert!(done.status.success(), "openssl {arguments:?}: {}", said(&done));
}

#[test]
fn a_signed_certificate_says_by_whom_and_any_other_key_or_none_is_told() {
    let folder = folder();
    let at = folder.path();
    for name in ["mine", "other"] {
        let (private, public) = (format!("{name}.pem"), format!("{name}.pub"));
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", &private], at);
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public], at);
    }
    let key = at.join("mine.pem");
    let sign = ["--only", "C10", "--quiet", "--sign", key.to_str().unwrap()];
    let (output, certificate) = run(at, &faulty_driver(), &config(""), &sign);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let signature = certificate.unwrap().signature.unwrap();
    let file = at.join("out/certificate.json");
    let text = read(&file);
    let verify = |text: &str, key: Option<&str>| {
        std::fs::write(&file, text).unwrap();
        let mut command = program();
        command.arg("verify").arg(&file);
        if let Some(key) = key {
            command.arg("--key").arg(at.join(key));
        }
        let done = command.output().unwrap();
        (done.status.code().unwrap(), said(&done))
    };
    let good = "good: faulty 0.1.0, level none, signed by";
    assert_eq!(verify(&text, Some("mine.pub")), (0, format!("{good} the key given\n")));
    let nobody = format!("{good} {}, which nobody has vouched for\n", signature.key);
    assert_eq!(verify(&text, None), (0, nobody));

    let (code, said_of_other) = verify(&text, Some("other.pub"));
    let mine =
        format!("bad: the certificate is signed by the key {}, and must be by ", signature.key);
    assert!(code == 1 && said_of_other.starts_with(&mine), "{said_of_other}");

    // The very text that openssl signs too.
    let begin = text.find(",\"signature\":{").unwrap();
    let end = begin + text[begin..].find('}').unwrap() + 1;
    let unsigned = format!("{}{}", &text[..begin], &text[end..]);
    std::fs::write(at.join("text"), &unsigned).unwrap();
    let bytes: Vec<u8> = (0..64)
        .map(|n| u8::from_str_radix(&signature.value[2 * n..2 * n + 2], 16).unwrap())
        .collect();
    std::fs::write(at.join("signature"), bytes).unwrap();
    let words = ["pkeyutl", "-verify", "-pubin", "-inkey", "mine.pub", "-rawin", "-in", "text"];
    openssl(&[words.as_slice(), &["-sigfile", "signature"]].concat(), at);

    let none = "bad: the certificate is not signed, and must be by the key given\n";
    assert_eq!(verify(&unsigned, Some("mine.pub")), (1, none.to_owned()));
    let first = &signature.value[..1];
    let flipped = if first == "0" { "1" } else { "0" };
    let value = text.replacen(&signature.value, &format!("{flipped}{}", &signature.value[1..]), 1);
    let wrong = format!("bad: the signature is not one of this certificate by {}\n", signature.key);
    assert_eq!(verify(&value, Some("mine.pub")), (1, wrong.clone()));
    assert_eq!(verify(&value, None), (1, wrong));
    let upper = text.replacen(&signature.value, &signature.value.to_uppercase(), 1);
    let digits = "bad: the signature is not 128 digits 0-9a-f\n";
    assert_eq!(verify(&upper, None), (1, digits.to_owned()));

    let (code, said_of_key) = verify(&text, Some("text"));
    let no_key =
        "holds no public key of ed25519 in PEM: `openssl genpkey -algorithm ed25519` makes";
    assert!(code == 2 && said_of_key.contains(no_key), "{said_of_key}");
    assert!(!said_of_key.contains("sha256"), "{said_of_key}");
}
