//! Guests on networks: three hosts, cables that are pulled, hosts that do not hear each other.

use std::time::Duration;

use lab::{Guest, Lab, Network, Result};

fn hears(from: &Guest, to: &Guest, network: &Network) -> Result<bool> {
    let address = to.address(network)?.to_string();
    // It asks each second, until there is an answer.
    Ok(from.run(["ping", "-c1", "-w3", &address])?.status == 0)
}

/// That nobody answers within a second; each question takes a millisecond otherwise.
fn is_deaf(to: &Guest, from: &Guest, network: &Network) -> Result<bool> {
    let address = to.address(network)?.to_string();
    Ok(from.run(["ping", "-c1", "-w1", &address])?.status == 1)
}

/// Round trip in milliseconds.
fn round_trip(from: &Guest, to: &Guest, network: &Network) -> Result<f64> {
    let address = to.address(network)?.to_string();
    // The first one also asks for the address.
    let text = from.check(["ping", "-c3", "-i0.2", "-W5", &address])?;
    let times =
        text.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok());
    Ok(times.fold(f64::MAX, f64::min))
}

#[test]
fn three_guests_on_two_networks() -> Result<()> {
    let lab = Lab::new()?;
    let (front, back) = (lab.network()?, lab.network()?);
    let [nas, a, b] = lab.boot([
        lab.guest("nas").network(&front).network(&back),
        lab.guest("host-a").network(&front).network(&back),
        lab.guest("host-b").network(&front),
    ])?;

    for (from, to) in [(&a, &nas), (&nas, &b), (&b, &a)] {
        assert!(hears(from, to, &front)?);
    }
    assert!(hears(&a, &nas, &back)?);
    assert!(b.address(&back).is_err());

    // One cable of one host: the other network and the other hosts do not notice.
    front.unplug(&a);
    assert!(is_deaf(&nas, &a, &front)?);
    assert!(is_deaf(&a, &nas, &front)?);
    assert!(hears(&a, &nas, &back)? && hears(&b, &nas, &front)?);
    front.plug(&a);
    assert!(hears(&a, &nas, &front)?);

    // Two hosts that both reach the third, but not each other.
    front.separate(&a, &b);
    assert!(is_deaf(&b, &a, &front)?);
    assert!(hears(&a, &nas, &front)? && hears(&b, &nas, &front)?);
    front.join(&b, &a);
    assert!(hears(&a, &b, &front)?);

    let quick = round_trip(&a, &nas, &front)?;
    front.delay(&nas, Duration::from_millis(60));
    let slow = round_trip(&a, &nas, &front)?;
    // Each of the two ways.
    assert!((120.0..quick + 500.0).contains(&slow), "{quick} ms, then {slow} ms");
    front.delay(&nas, Duration::ZERO);
    assert!(round_trip(&a, &nas, &front)? < 100.0);

    // The cable stays where it was when a guest is booted again.
    b.reboot()?;
    assert!(hears(&b, &nas, &front)?);
    Ok(())
}
