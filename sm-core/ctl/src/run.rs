//! From the command line to the exit status.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use sm_model::{Error, OperationId};

use crate::cli::driver::DriverCommand;
use crate::cli::{Cli, ColorWhen, Command};
use crate::errors::{Failure, Result, Status};
use crate::output::{self, Report, Style};
use crate::session::{Retry, Session, SharedRetry};
use crate::{driver, job, pages, sr, trace, vdi, vhd};

/// The whole program.
pub(crate) fn run() -> ExitCode {
    let argv: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let status = match Cli::try_parse() {
        Ok(cli) => perform(&cli, argv),
        Err(error) => say_usage(&error, &argv),
    };
    ExitCode::from(status.0)
}

fn perform(cli: &Cli, argv: Vec<String>) -> Status {
    let global = &cli.global;
    trace::start(global.verbose, global.trace_requests);
    let id = global.operation_id.map_or_else(OperationId::random, OperationId);
    let retry = SharedRetry::new(Retry::new(argv, id));
    let errors = Style::choose(global.color, &std::io::stderr());
    let fail = |failure: &Failure| {
        failure.report(errors, global.json, global.verbose > 0, Some(&retry.get()));
        failure.status()
    };
    let report = match command(cli, &retry) {
        Ok(report) => report,
        Err(failure) => return fail(&failure),
    };
    if let Err(error) = output::print(report.text.as_bytes()) {
        return fail(&crate::errors::file_error("standard output", error));
    }
    if let Some(note) = &report.note {
        let _ = writeln!(std::io::stderr().lock(), "{note}");
    }
    report.status
}

fn command(cli: &Cli, retry: &SharedRetry) -> Result<Report> {
    let global = &cli.global;
    match &cli.command {
        // These need no storage manager.
        Command::Completions { shell } => return Ok(pages::completions(*shell, global.json)),
        Command::Man { output } => return pages::man(output.as_deref(), global.json),
        Command::Vhd(command) => return vhd::run(command, global),
        Command::Driver(DriverCommand::Inspect { file }) => {
            let style = Style::choose(global.color, &std::io::stdout());
            return driver::inspect(file, global.json, style);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal("the runtime cannot be started").source(&error))?;
    let result = runtime.block_on(with_session(cli, retry));
    // A thread may still wait for a line of stdin; nothing that matters is left to it.
    runtime.shutdown_background();
    result
}

async fn with_session(cli: &Cli, retry: &SharedRetry) -> Result<Report> {
    let session = Session::open(&cli.global, retry).await?;
    session.refuse_idle_driver(&cli.command)?;
    // What only reads the catalog is over before anybody can press Ctrl-C.
    let quick = matches!(
        cli.command,
        Command::Driver(_)
            | Command::Sr(crate::cli::sr::SrCommand::List)
            | Command::Job(crate::cli::job::JobCommand::List)
    );
    if !quick {
        session.watch_signals()?;
    }
    if !quick {
        crate::quiesce::recover(&session).await;
    }
    let result = match &cli.command {
        Command::Driver(command) => driver::run(&session, command),
        Command::Sr(command) => sr::run(&session, command).await,
        Command::Vdi(args) => vdi::run(&session, args).await,
        Command::Group(args) => crate::group::run(&session, args).await,
        Command::VmSnapshot(args) => crate::quiesce::take(&session, args).await,
        Command::SnapshotGroup(command) => crate::quiesce::run(&session, command).await,
        Command::Host(command) => crate::host::run(&session, command).await,
        Command::Job(command) => job::run(&session, command).await,
        Command::Completions { .. } | Command::Man { .. } | Command::Vhd(_) => {
            Err(Error::internal("this command needs no storage manager").into())
        }
    };
    session.manager.close().await;
    result
}

/// Help and version go to stdout; a wrong command line to stderr, in the form of all our errors.
fn say_usage(error: &clap::Error, argv: &[String]) -> Status {
    let color = wished_color(argv);
    match error.kind() {
        ErrorKind::DisplayHelp => say_help(argv, Style::choose(color, &std::io::stdout())),
        ErrorKind::DisplayVersion => printed(&error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Not what was asked for: it must not be taken for an answer.
            let _ = write!(std::io::stderr().lock(), "{}", help(argv));
            Status::USAGE
        }
        _ => {
            let style = Style::choose(color, &std::io::stderr());
            let json = argv.iter().take_while(|word| *word != "--").any(|word| word == "--json");
            usage_failure(error, argv).report(style, json, false, None);
            Status::USAGE
        }
    }
}

fn say_help(argv: &[String], style: Style) -> Status {
    let help = help(argv);
    printed(&if style.is_on() { help.ansi().to_string() } else { help.to_string() })
}

/// The help for this command line. The definition that parses has all options everywhere; what
/// people read is made only when somebody wants to read it.
fn help(argv: &[String]) -> StyledStr {
    match crate::cli::for_people().try_get_matches_from(argv) {
        Err(error) => error.render(),
        Ok(_) => StyledStr::new(),
    }
}

fn printed(text: &str) -> Status {
    match output::print(text.as_bytes()) {
        Ok(()) => Status::OK,
        Err(_) => Status(1),
    }
}

fn usage_failure(error: &clap::Error, argv: &[String]) -> Failure {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    // A value that its type refuses says why; clap's frame around it adds nothing.
    if error.kind() == ErrorKind::ValueValidation
        && let Some(source) = std::error::Error::source(error)
    {
        let option = text(ContextKind::InvalidArg).unwrap_or_default();
        return Failure::usage(format!("{option}: {source}"));
    }
    let rendered = error.render().to_string();
    let fact = rendered.split("\n\nUsage:").next().unwrap_or_default();
    let (usage, name) = usage_of(argv);
    Failure::usage(format!("{}\n\n{usage}", fact.strip_prefix("error: ").unwrap_or(fact)))
        .hint(format!("{name} --help"))
}

/// Usage and name of the verb that was typed. Clap's own line would list what the environment
/// sets as if it had to be typed.
fn usage_of(argv: &[String]) -> (String, String) {
    let mut command = crate::cli::for_people();
    for word in argv.iter().skip(1).take_while(|word| *word != "--") {
        if let Some(found) = command.find_subcommand(word) {
            command = found.clone();
        }
    }
    let name = command.get_bin_name().unwrap_or("smctl").to_owned();
    (command.render_usage().to_string(), name)
}

/// `--color` of a command line that was not understood as a whole.
fn wished_color(argv: &[String]) -> ColorWhen {
    let mut wished = ColorWhen::Auto;
    let mut words = argv.iter();
    while let Some(word) = words.next() {
        let value = match word.strip_prefix("--color") {
            Some("") => words.next().map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        wished = match value {
            Some("always") => ColorWhen::Always,
            Some("never") => ColorWhen::Never,
            Some("auto") => ColorWhen::Auto,
            _ => wished,
        };
    }
    wished
}
