//! Completions and manual pages, made from the definition of the command line.

use std::io;

use camino::Utf8Path;
use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;
use sm_model::Error;

use crate::cli::Cli;
use crate::errors::{Result, file_error};
use crate::output::Report;

/// The completions of a shell. They are a script, with and without `--json`.
pub(crate) fn completions(shell: Shell, json: bool) -> Report {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "smctl", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    Report::new(json, &json!({"shell": shell.to_string(), "script": script}), || script.clone())
}

/// The manual page of the program, or one page for each command.
pub(crate) fn man(output: Option<&Utf8Path>, json: bool) -> Result<Report> {
    let Some(folder) = output else {
        let page = render(Cli::command())?;
        return Ok(Report::new(json, &json!({"page": page}), || page.clone()));
    };
    std::fs::create_dir_all(folder).map_err(|error| file_error(folder, error))?;
    clap_mangen::generate_to(crate::cli::for_people(), folder)
        .map_err(|error| file_error(folder, error))?;
    let mut pages = names(folder).map_err(|error| file_error(folder, error))?;
    pages.sort();
    let text = format!("{} pages are in {folder}; see: man -l {folder}/smctl.1\n", pages.len());
    Ok(Report::new(json, &json!({"folder": folder, "pages": pages}), || text))
}

fn render(command: clap::Command) -> Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Error::internal("the manual page cannot be made").source(&error))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn names(folder: &Utf8Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir_utf8()? {
        let name = entry?.file_name().to_owned();
        if name.starts_with("smctl") && name.ends_with(".1") {
            names.push(name);
        }
    }
    Ok(names)
}
