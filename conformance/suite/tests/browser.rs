//! The pages in a real browser: on a phone, in the dark and on paper. Spoken with by W3C WebDriver
//! (<https://www.w3.org/TR/webdriver2/>), as `chromedriver` of Chromium 156 understands it.
//!
//! A program of its own: checks of the other one count its children, and a browser has many.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use conformance::built;

/// Time for one command of the browser.
const COMMAND: Duration = Duration::from_secs(60);

const PROGRAM: &str = env!("CARGO_BIN_EXE_sm-conformance");

/// CSS pixels of a small phone.
const PHONE: (u32, u32) = (360, 740);

/// A browser without a window, and without a way to anywhere but this host. It ends with this.
struct Browser {
    driver: Child,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    session: String,
}

impl Browser {
    fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("chromedriver, of the package chromium-driver: {error}")
            });
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.by_ref().find_map(|line| {
            let line = line.unwrap();
            let port = line.split_once("started successfully on port ")?.1;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        // What it says from now on is read, so that it is never held up.
        std::thread::spawn(move || lines.for_each(drop));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(COMMAND).no_proxy().build().unwrap();
        let url = format!("http://127.0.0.1:{}/session", port.unwrap());
        let mut browser = Self { driver, client, runtime, session: url };
        let phone =
            json!({ "width": PHONE.0, "height": PHONE.1, "pixelRatio": 2.0, "touch": true });
        let arguments = [
            "--headless",
            // Root has no sandbox to be in.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ];
        let options = json!({ "args": arguments, "mobileEmulation": { "deviceMetrics": phone } });
        let wanted = json!({ "alwaysMatch": { "goog:chromeOptions": options } });
        let session = browser.post("", &json!({ "capabilities": wanted }));
        browser.session = format!("{}/{}", browser.session, session["sessionId"].as_str().unwrap());
        browser
    }

    /// A command of the session: its value, or its error as a failure of the test.
    fn post(&self, command: &str, body: &Value) -> Value {
        let request = self.client.post(format!("{}{command}", self.session));
        self.answer(command, request.body(body.to_string()))
    }

    fn get(&self, command: &str) -> Value {
        self.answer(command, self.client.get(format!("{}{command}", self.session)))
    }

    fn answer(&self, command: &str, request: reqwest::RequestBuilder) -> Value {
        let (status, text) = self.runtime.block_on(async {
            let response = request.send().await.unwrap();
            (response.status(), response.text().await.unwrap())
        });
        assert!(status.is_success(), "{command}: {text}");
        serde_json::from_str::<Value>(&text).unwrap()["value"].take()
    }

    fn open(&self, file: &Path) {
        self.post("/url", &json!({ "url": format!("file://{}", file.display()) }));
    }

    /// What a script answers. The page's policy is about scripts of the page, not about this one.
    fn ask(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn find(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        // The member's name is the one that the specification gives (12.3).
        found["element-6066-11e4-a52e-4f735466cecf"].as_str().unwrap().to_owned()
    }

    /// Has the pages shown as to somebody who likes them `dark` or `light`.
    fn prefer(&self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        let params = json!({ "features": [feature] });
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": params });
        self.post("/goog/cdp/execute", &command);
    }

    /// The colour that most pixels of an element have, as it is drawn.
    fn colour(&self, selector: &str) -> [u8; 3] {
        let shot = self.get(&format!("/element/{}/screenshot", self.find(selector)));
        let bytes = decoded(&shot);
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let shape = reader.next_frame(&mut pixels).unwrap();
        let mut seen = BTreeMap::<[u8; 3], usize>::new();
        for pixel in pixels.chunks_exact(shape.color_type.samples()) {
            *seen.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
        }
        seen.into_iter().max_by_key(|(_, times)| *times).unwrap().0
    }

    /// The text of the pages that a printer would get, as poppler reads it.
    fn printed(&self, at: &Path) -> String {
        let file = at.join("page.pdf");
        std::fs::write(&file, decoded(&self.post("/print", &json!({})))).unwrap();
        let read = Command::new("pdftotext").arg("-layout").arg(&file).arg("-").output();
        let read = read.unwrap_or_else(|error| panic!("pdftotext, of poppler-utils: {error}"));
        assert!(read.status.success(), "{read:?}");
        String::from_utf8(read.stdout).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser and its helpers are of the group of its driver.
        let group = i32::try_from(self.driver.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.driver.wait();
    }
}

fn decoded(value: &Value) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// Nothing is wider than the screen, no text too small to read, nothing to touch too small for a
/// finger (24 CSS pixels, WCAG 2.2, 2.5.8).
fn is_for_phones(browser: &Browser) {
    let wide = browser.ask("return document.documentElement.scrollWidth");
    assert_eq!(wide, PHONE.0, "the page is wider than the phone");
    let cut = "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, pre') \
               && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)";
    assert_eq!(browser.ask(cut), json!([]), "what the screen cuts off");
    let small = "const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); \
                 let small = 99; while (texts.nextNode()) { \
                 const of = texts.currentNode.parentElement; if (!of.closest('svg')) \
                 small = Math.min(small, parseFloat(getComputedStyle(of).fontSize)) } return small";
    assert!(browser.ask(small).as_f64().unwrap() >= 12.0, "{}", browser.ask(small));
    let touched = "return [...document.querySelectorAll('.squares a, summary')].filter(e => { \
                   const at = e.getBoundingClientRect(); return at.width < 24 || at.height < 24 }) \
                   .map(e => e.outerHTML)";
    assert_eq!(browser.ask(touched), json!([]), "what is too small for a finger");
}

#[test]
fn a_browser_shows_the_page_on_a_phone_in_the_dark_and_on_paper() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = folder.path();
    run(at);
    let browser = Browser::start();
    browser.open(&at.join("out/report.html"));
    is_for_phones(&browser);

    browser.prefer("light");
    assert_eq!(browser.colour(".squares a[href='#E02']"), [0xb3, 0x20, 0x1f], "a failure is red");
    assert_eq!(browser.colour(".squares a[href='#C10']"), [0x18, 0x70, 0x3a], "success is green");
    assert_eq!(browser.colour("header"), [0xff; 3]);
    browser.prefer("dark");
    assert_eq!(browser.colour(".squares a[href='#E02']"), [0xf0, 0x6a, 0x66]);
    assert_eq!(browser.colour("header"), [0x17, 0x18, 0x1b]);
    // Words stand out from what is behind them (4.5 to 1, WCAG 2.2, 1.4.3), in both.
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        for class in [".faint", "b.fail", "body"] {
            let ratio = browser.ask(&contrast(class)).as_f64().unwrap();
            assert!(ratio >= 4.5, "{class} in the {scheme}: {ratio}");
        }
    }

    // A touch on the square leads to what is known of the failure.
    browser
        .post(&format!("/element/{}/click", browser.find(".squares a[href='#E02']")), &json!({}));
    let top = "return document.querySelector('#E02').getBoundingClientRect().top";
    let top = browser.ask(top).as_f64().unwrap();
    assert!((-1.0..f64::from(PHONE.1)).contains(&top), "the failure is {top} pixels down");

    // Folded on the screen, open on paper, where nothing is lost at an edge.
    let folded = "return document.querySelector('#all details tr').checkVisibility()";
    assert_eq!(browser.ask(folded), false);
    let paper = browser.printed(at);
    for text in ["C10 vdi.delete_ok", "snap.frozen_under_writes", "sm-conformance replay", "PASS"] {
        assert!(paper.contains(text), "{text} is not on paper:\n{paper}");
    }

    let matrix = at.join("matrix.html");
    let certificate = at.join("out/certificate.json");
    let made = Command::new(PROGRAM).arg("matrix").args(vec![certificate; 10]).output().unwrap();
    std::fs::write(&matrix, &made.stdout).unwrap();
    browser.open(&matrix);
    is_for_phones(&browser);
    // Ten drivers stand beside each other on paper: its edge cuts off nothing of the last column.
    let last = "return [...document.querySelectorAll('#matrix tr')].slice(2) \
                .map(row => row.lastElementChild.textContent)";
    let paper = browser.printed(at);
    for built in browser.ask(last).as_array().unwrap() {
        let built = built.as_str().unwrap();
        assert!(paper.contains(&format!(" {built}\n")), "{built} is not on paper:\n{paper}");
    }
}

/// A run in which one check fails and one holds.
fn run(at: &Path) {
    // The driver, which is root's here, runs as nobody, and goes through this.
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o711)).unwrap();
    let driver = std::env::current_exe().unwrap().with_file_name("libfaulty.so");
    let config = "[device-config]\nlocation = \"{scratch}\"\ndefect = \"snapshot-live\"\n\
                  [backend]\ndirectory = \"{scratch}\"\n[suite]\ncall-seconds = 60\n";
    let sr = at.join("sr.toml");
    std::fs::write(&sr, config).unwrap();
    let done = Command::new(PROGRAM)
        .env("SM_DRIVER_HOST", built::artefact("sm-driver-host"))
        .args(["run", "--only", "E02", "--only", "C10", "--quiet", "--driver"])
        .arg(driver)
        .arg("--config")
        .arg(sr)
        .arg("--out")
        .arg(at.join("out"))
        .arg("--scratch")
        .arg(at)
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1), "{done:?}");
}

/// A script for the contrast of an element's words with the page, as WCAG 2.2 reckons it.
fn contrast(selector: &str) -> String {
    format!(
        "const light = text => {{ const [r, g, b] = text.match(/\\d+/g).map(n => n / 255) \
         .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); \
         return 0.2126 * r + 0.7152 * g + 0.0722 * b }}; \
         const words = light(getComputedStyle(document.querySelector('{selector}')).color); \
         const page = light(getComputedStyle(document.body).backgroundColor); \
         return (Math.max(words, page) + 0.05) / (Math.min(words, page) + 0.05)"
    )
}
