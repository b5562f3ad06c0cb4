//! A guest boots, runs commands, is killed and booted again; nothing of it stays.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Error, Lab, Result, Step};

#[test]
fn a_command_runs_and_its_status_and_outputs_come_back() -> Result<()> {
    let guest = Lab::new()?.guest("alone").boot()?;
    let output = guest.run(["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    assert_eq!(
        (output.status, output.text().as_str(), output.errors().as_str()),
        (3, "out", "err")
    );
    assert_eq!(guest.run(["sh", "-c", "kill -9 $$"])?.status, 128 + 9);
    assert_eq!(guest.run(["no-such-program"])?.status, 127);
    assert_eq!(guest.check(["uname", "-n"])?, "alone");

    // More than the guest's terminal holds, both ways.
    let long = "x".repeat(50_000);
    assert_eq!(guest.command(["cat"]).input(long.clone()).check()?, long);
    let argument = guest.command(["printenv", "A"]).env("A", &long).directory("/usr").check()?;
    assert_eq!(argument, long);

    let failure = guest.check(["ls", "/nowhere"]).unwrap_err().to_string();
    assert!(failure.contains("alone: ls /nowhere ended with 2"), "{failure}");
    assert!(failure.contains("! ls: cannot access '/nowhere'"), "{failure}");
    Ok(())
}

#[test]
fn a_command_that_takes_too_long_is_ended_with_all_it_started() -> Result<()> {
    let guest = Lab::new()?.guest("alone").boot()?;
    let begun = Instant::now();
    let words = ["sh", "-c", "echo begun; sleep 1000 & sleep 1000"];
    let late = guest.command(words).deadline(Duration::from_millis(500)).run().unwrap_err();
    assert!(matches!(&late, Error::Late { said, .. } if said.contains("begun")), "{late}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    guest.wait_for("the end of the sleepers", Duration::from_secs(10), |guest| {
        let sleepers = guest.run(["sh", "-c", "cat /proc/[0-9]*/comm | grep -c sleep"])?.text();
        Ok(if sleepers == "0" { Ok(()) } else { Err(sleepers) })
    })
}

#[test]
fn files_and_modules_are_handled_without_a_process_for_each() -> Result<()> {
    let lab = Lab::new()?;
    let guest = lab.guest("alone").boot()?;
    let path = "/var/tmp/deep/file";
    guest.steps(vec![
        Step::Directory("/var/tmp/deep".into()),
        Step::Write(path.into(), "one ".into()),
        Step::Append(path.into(), "two".into()),
        Step::Link(path.into(), "/var/tmp/link".into()),
        Step::Module("nbd".into()),
    ])?;
    assert_eq!(guest.read("/var/tmp/link")?, b"one two");
    assert_eq!(guest.check(["ls", "-d", "/sys/block/nbd0"])?, "/sys/block/nbd0");
    let failure = guest.load(&["no-such-module"]).unwrap_err().to_string();
    assert!(failure.contains("this kernel has no module no-such-module"), "{failure}");

    let bytes: Vec<u8> = (0..2_000_000_u32).map(|number| ((number * 7) >> 3) as u8).collect();
    let (here, back) = (lab.folder().join("here"), lab.folder().join("back"));
    std::fs::write(&here, &bytes).unwrap();
    guest.copy_in(&here, "/var/tmp/copy")?;
    guest.copy_out("/var/tmp/copy", &back)?;
    assert!(std::fs::read(&back).unwrap() == bytes, "the copy differs");
    Ok(())
}

/// What is written to a disk is there after a kill; what is written elsewhere is not, and never
/// reaches the machine.
#[test]
fn disks_survive_a_kill_and_all_else_does_not() -> Result<()> {
    let lab = Lab::new()?;
    let disk = lab.disk("a", 64 << 20)?;
    let guest = lab.guest("host").disk(&disk).boot()?;
    let word = "the word on the disk";
    guest.check(["mkfs.ext4", "-q", "/dev/ubda"])?;
    guest.check(["mount", "/dev/ubda", "/mnt"])?;
    guest.write("/mnt/word", word)?;
    guest.check(["sync", "/mnt/word"])?;
    guest.write("/usr/lab-was-here", "")?;
    guest.kill();
    assert!(!guest.is_on());
    assert!(matches!(guest.run(["true"]), Err(Error::Off { .. })));
    guest.boot()?;
    guest.check(["mount", "/dev/ubda", "/mnt"])?;
    assert_eq!(guest.read("/mnt/word")?, word.as_bytes());
    assert_eq!(guest.run(["test", "-e", "/usr/lab-was-here"])?.status, 1);
    assert!(!std::path::Path::new("/usr/lab-was-here").exists());
    guest.power_off()?;
    assert!(!guest.is_on());

    disk.resize(96 << 20)?;
    guest.boot()?;
    assert_eq!(guest.check(["blockdev", "--getsize64", "/dev/ubda"])?, (96 << 20).to_string());
    // What a guest discards takes no room on the machine.
    let room = || std::os::unix::fs::MetadataExt::blocks(&disk.path().metadata().unwrap());
    assert!(room() > 0);
    guest.check(["blkdiscard", "/dev/ubda"])?;
    assert_eq!(room(), 0);
    Ok(())
}

#[test]
fn a_kill_in_the_middle_of_a_command_is_told() -> Result<()> {
    let guest = Lab::new()?.guest("alone").boot()?;
    let running = guest.command(["sleep", "1000"]).start()?;
    guest.kill();
    let gone = running.wait(Duration::from_secs(20)).unwrap_err();
    assert!(matches!(gone, Error::Gone { .. }), "{gone}");
    assert!(gone.to_string().contains("alone went away while sleep 1000"), "{gone}");
    Ok(())
}

/// What ran is told; a guest whose kernel has panicked is off, one that resets itself, as a watchdog
/// would do it, comes back.
#[test]
fn panics_and_resets_of_a_guest_are_seen() -> Result<()> {
    let guest = Lab::new()?.guest("alone").boot()?;
    let trigger = |letter: &str| {
        let script = format!("echo {letter} > /proc/sysrq-trigger; sleep 1000");
        guest.command(["sh", "-c", &script]).start()?.wait(Duration::from_secs(30))
    };
    let gone = trigger("c").unwrap_err();
    assert!(gone.to_string().contains("Kernel panic - not syncing: sysrq triggered"), "{gone}");
    guest.wait_for("the end", Duration::from_secs(10), |guest| {
        Ok(if guest.is_on() { Err("it is on".to_owned()) } else { Ok(()) })
    })?;
    assert!(guest.console().contains("sysrq: Trigger a crash"), "{}", guest.console());
    guest.boot()?;

    guest.write("/var/tmp/file", "")?;
    let gone = trigger("b").unwrap_err();
    assert!(matches!(gone, Error::Gone { .. }), "{gone}");
    assert_eq!(guest.run(["test", "-e", "/var/tmp/file"])?.status, 1);
    Ok(())
}

/// Where no guest can run, a test fails and says why; it does not pass by doing nothing.
#[test]
fn without_a_lab_tests_fail_and_say_why() {
    // Where the program is readable for everybody, whatever the folder it was built in is.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("kernels");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let output = Command::new(program)
        .args(["--exact", "guests::a_kill_in_the_middle_of_a_command_is_told"])
        .current_dir("/")
        .uid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success());
    assert!(
        text.contains("no lab on this machine: a guest runs behind a read-only view"),
        "{text}"
    );
    assert!(text.contains("0 passed; 1 failed; 0 ignored"), "{text}");
}

#[test]
fn a_paused_guest_answers_when_it_is_resumed() -> Result<()> {
    let guest = Lab::new()?.guest("alone").boot()?;
    let running = guest.command(["sh", "-c", "sleep 0.3; echo done"]).start()?;
    guest.pause()?;
    let ended = guest.wait_for("nothing", Duration::from_secs(1), |_| {
        Ok(running.ended().ok_or_else(|| "it runs".to_owned()))
    });
    assert!(matches!(ended, Err(Error::Late { .. })), "a paused guest went on");
    guest.resume()?;
    assert_eq!(running.wait(Duration::from_secs(20))?.text(), "done");
    Ok(())
}

#[test]
fn a_boot_that_fails_shows_the_console() {
    let lab = Lab::new().unwrap();
    let failure = lab.guest("small").modules(&["no-such-module"]).boot().err().unwrap();
    let text = failure.to_string();
    assert!(text.contains("small did not boot: it ended"), "{text}");
    assert!(text.contains("this kernel has no module no-such-module"), "{text}");
}

/// Root in a guest can mount the machine's root; it must not be able to write it.
#[test]
fn the_machine_cannot_be_written_from_a_guest() -> Result<()> {
    let lab = Lab::new()?;
    let shared = tempfile::tempdir().unwrap();
    let guest = lab.guest("alone").share(shared.path()).boot()?;
    guest.check(["mount", "-t", "hostfs", "none", "/mnt", "-o", "/"])?;
    let here = lab.folder().join("disks");
    for folder in ["/var/tmp", "/dev/shm", "/etc", here.to_str().unwrap()] {
        let output = guest.run(["touch", &format!("/mnt{folder}/lab-was-here")])?;
        assert_ne!(output.status, 0, "{folder} can be written");
        assert!(output.errors().contains("Read-only file system"), "{}", output.errors());
    }
    for folder in [lab.share().as_path(), shared.path()] {
        let file = folder.join("file");
        guest.check(["touch", file.to_str().unwrap()])?;
        assert!(file.exists());
    }
    Ok(())
}

/// Same names, same addresses, at the same time.
#[test]
fn two_labs_do_not_see_each_other() -> Result<()> {
    let labs = [Lab::new()?, Lab::new()?];
    let mut guests = Vec::new();
    for lab in &labs {
        let network = lab.network()?;
        let [one, two] = lab.boot(["one", "two"].map(|name| lab.guest(name).network(&network)))?;
        guests.push((one, two, network));
    }
    let (first, second) = (&guests[0], &guests[1]);
    assert_eq!(first.1.address(&first.2)?, second.1.address(&second.2)?);
    let address = first.1.address(&first.2)?.to_string();
    let ping = ["ping", "-c1", "-w3", &address];
    first.0.check(ping)?;
    first.1.kill();
    let ping_once = ["ping", "-c1", "-w1", &address];
    assert_eq!(first.0.run(ping_once)?.status, 1, "another lab's guest answers");
    second.0.check(ping)?;
    Ok(())
}

/// The test starts itself as a runner and kills it, so that nothing of it can clean up.
#[test]
fn a_guest_dies_with_its_runner() -> Result<()> {
    const ROLE: &str = "LAB_TEST_IS_RUNNER";
    if std::env::var_os(ROLE).is_some() {
        let lab = Lab::new()?;
        let guest = lab.guest("alone").boot()?;
        let running = guest.command(["sleep", "1000"]).start()?;
        println!("\nfolder {}", lab.folder().display());
        running.wait(Duration::from_secs(600))?;
        return Ok(());
    }
    let mut runner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "guests::a_guest_dies_with_its_runner", "--nocapture"])
        .env(ROLE, "")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines =
        BufReader::new(runner.stdout.take().unwrap()).lines().map_while(std::result::Result::ok);
    let folder = lines.find_map(|line| Some(line.strip_prefix("folder ")?.to_owned()));
    let folder = folder.expect("the runner boots a guest");
    assert!(!processes_of(&folder).is_empty());
    runner.kill().unwrap();
    runner.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !processes_of(&folder).is_empty() || std::path::Path::new(&folder).exists() {
        assert!(Instant::now() < end, "left: {:?}, {folder}", processes_of(&folder));
        std::thread::yield_now();
    }
    Ok(())
}

/// Processes of the machine whose command line names the folder.
fn processes_of(folder: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}

#[test]
fn a_test_runs_in_a_guest_of_its_own() -> Result<()> {
    let describe = |lab: &Lab| Ok(lab.guest("inner").disk(&lab.disk("a", 1 << 20)?));
    lab::in_guest(describe, || {
        assert!(std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("UML"));
        assert_eq!(std::fs::read_to_string("/etc/hostname").unwrap(), "inner\n");
        std::fs::write("/dev/ubda", vec![7; 4096]).unwrap();
    })
}

#[test]
fn a_test_that_fails_in_a_guest_fails_here() {
    let failure = lab::in_guest(|lab| Ok(lab.guest("inner")), || panic!("as it should"));
    if !lab::inside() {
        let text = failure.unwrap_err().to_string();
        assert!(text.contains("as it should"), "{text}");
    }
}
