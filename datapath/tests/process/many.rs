//! Many processes at once.

use datapath::control::find;

use super::place::{LONG, Site, until};

const COUNT: usize = 200;

/// Started by so many at a time.
const THREADS: usize = 8;

#[test]
fn two_hundred_disks_are_served_at_once_and_nothing_stays() {
    let sites: Vec<Site> = (0..COUNT).map(|_| Site::new()).collect();
    let each = |work: &(dyn Fn(usize, &Site) + Sync)| {
        std::thread::scope(|scope| {
            for (thread, sites) in sites.chunks(COUNT.div_ceil(THREADS)).enumerate() {
                scope.spawn(move || {
                    for (index, site) in sites.iter().enumerate() {
                        work(thread * COUNT.div_ceil(THREADS) + index, site);
                    }
                });
            }
        });
    };
    each(&|number, site| {
        site.serve();
        site.connect().write(4096, &[number as u8 | 1; 4096], true).unwrap();
    });
    let processes: Vec<_> = sites.iter().map(|site| site.place.process().unwrap()).collect();
    assert!(processes.iter().all(|process| process.is_alive()), "all of them at once");
    let mut pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), COUNT);
    each(&|_, site| datapath::control::end(&site.place, LONG).unwrap());
    for (number, (site, process)) in sites.iter().zip(&processes).enumerate() {
        until("the process to end", || !process.is_alive());
        assert!(!site.place.exists() && find(&site.place).unwrap().is_none(), "{number}");
        assert_eq!(site.byte(site.disk, 4096), number as u8 | 1);
    }
}
