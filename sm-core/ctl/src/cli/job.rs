//! `smctl job ...`

use clap::{Args, Subcommand};

/// What can be done with jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List the jobs, the past ones too
    #[command(after_help = "Example: smctl job list")]
    List,
    /// Show one job
    #[command(after_help = "Example: smctl job show 4f1c")]
    Show(JobSelector),
    /// Ask a job to stop
    #[command(after_help = "Example: smctl job cancel 4f1c")]
    Cancel(JobSelector),
    /// Wait for the end of a job; the exit status is that of the job
    #[command(after_help = "Example: smctl job wait 4f1c --timeout 10m")]
    Wait(JobSelector),
    /// Go on with a job that was interrupted
    #[command(after_help = "Example: smctl job resume 4f1c")]
    Resume(JobSelector),
}

/// Which job.
#[derive(Args, Debug)]
pub(crate) struct JobSelector {
    /// UUID of the job (the operation id of the command that began it), or its first characters
    pub(crate) job: String,
}
