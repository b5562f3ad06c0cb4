//! Drivers of simulated arrays: the good one, and those with a defect of their list.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use array_sim::core::{NewVolume, Trouble};
use array_sim::powerstore::{PASSWORD, PowerStore, USER};
use array_sim::{Plan, Simulator};

use crate::{Ran, run};

/// The list that the driver looks into, too. A program links one driver at most, so it is read as a text.
const LIST: &str = include_str!("../../../faulty/rest/src/defects.txt");

/// The lines of the list: name, class, the checks of which one must find it, what is wrong.
pub(crate) fn defects() -> impl Iterator<Item = [&'static str; 4]> {
    let lines = LIST.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" | ").collect::<Vec<_>>().try_into().unwrap())
}

/// The driver with these defects, built as a dependency of this test.
pub(crate) fn driver() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libfaulty_rest.so");
    assert!(path.exists(), "{} was not built as a dev-dependency", path.display());
    path
}

/// Runs the program on the driver and an array of its own, on which there is a volume of somebody.
pub(crate) fn run_on_array(at: &Path, defect: &str, more: &[&str]) -> Ran {
    let state = at.join("array");
    std::fs::create_dir_all(&state).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let plan = Plan::default();
    let start = Simulator::start(Arc::new(PowerStore), &state, &plan);
    let array = runtime.block_on(start).unwrap();
    let admin = array.admin().replace("http://", "");
    let mut theirs = NewVolume::thin("pool", 1 << 20);
    for (key, value) in [("name", "payroll"), ("type", "Primary")] {
        theirs.attributes.insert(key.to_owned(), value.into());
    }
    let made: Result<_, Trouble> =
        array.array.change(|change| change.create_volume("payroll", theirs));
    made.unwrap();
    let config = format!(
        "[device-config]\ntarget = \"{}\"\nusername = \"{USER}\"\n{defect}\n\
         [secrets]\npassword = \"{PASSWORD}\"\n\
         [backend]\nsimulator = \"{admin}\"\nforeign = true\n",
        array.url()
    );
    run(&at.join("run"), &driver(), &config, more)
}
