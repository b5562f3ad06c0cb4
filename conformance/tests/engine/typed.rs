//! `smctl` as people type it, on the installation of a test.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::Site;

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Site {
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let drivers = self.folder.join("drivers");
        if !drivers.exists() {
            std::fs::create_dir(&drivers).unwrap();
            let name = "libsm_driver_file.so";
            std::os::unix::fs::symlink(crate::path(name), drivers.join(name)).unwrap();
        }
        let mut command = Command::new(crate::path("smctl"));
        command.args(words).env_clear().current_dir(&self.folder).stdin(Stdio::null());
        for name in ["PATH", "SM_RUN_DIR", "XDG_RUNTIME_DIR"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command
            .env("SMCTL_STATE_DIR", self.folder.join("state"))
            .env("SMCTL_DRIVER_DIR", drivers)
            .env("SMCTL_ISOLATION", "in-process")
            .env("SM_DATAPATH", crate::path("sm-datapath"));
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What must succeed; its output.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        text(&output.stdout).trim_end().to_owned()
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let all: Vec<&str> = std::iter::once("--json").chain(words.iter().copied()).collect();
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// What must fail with a status; what it says.
    pub(crate) fn fails(&self, words: &[&str], status: i32) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    /// The same, and the first line of what it says is this.
    pub(crate) fn refuses(&self, words: &[&str], status: i32, line: &str) {
        let said = self.fails(words, status);
        assert_eq!(said.lines().next(), Some(format!("smctl: {line}").as_str()), "{said}");
    }
}
