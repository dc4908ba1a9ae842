//! Attempts to connect: a fleet whose server is away asks ever more rarely, no two of it at the same times, and is there once the
//! server is.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millpond_tests::{Edge, Process};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(300);
/// Devices: enough that chance says little of their mean.
const DEVICES: usize = 16;
/// Attempts that end at once; the pauses between them have ceilings of 0.5, 1, 2, 4 and 8 s.
const ATTEMPTS: usize = 6;

/// A port that takes connections and ends each at once, so many times, and then leads to the server; when those came.
async fn port(server: SocketAddr) -> (SocketAddr, JoinHandle<Vec<Instant>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let times = tokio::spawn(async move {
        let mut times = Vec::new();
        while times.len() < ATTEMPTS {
            drop(listener.accept().await.unwrap());
            times.push(Instant::now());
        }
        tokio::spawn(async move {
            while let Ok((mut device, _)) = listener.accept().await {
                let mut server = TcpStream::connect(server).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut device, &mut server).await });
            }
        });
        times
    });
    (address, times)
}

fn mean(pauses: &[f64]) -> f64 {
    pauses.iter().sum::<f64>() / pauses.len() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_get_rarer_each_time_and_no_two_devices_make_them_together_and_each_is_there_once_the_server_is()
 {
    let (server, first) = Edge::device().await;
    let mut devices: Vec<(Edge, Process, JoinHandle<Vec<Instant>>)> = Vec::new();
    for n in 0..DEVICES {
        let mut edge = Edge::new(&server, first.who().clone()).await;
        let (address, times) = port(server.mqtt()).await;
        edge.set_environment([("MILLPOND_MQTT_PORT", address.port().to_string())]);
        edge.file("file", format!("device {n}").as_bytes());
        let push = edge.start("push", &["--patience", "600", "push", "file"]);
        devices.push((edge, push, times));
    }
    // Of each attempt the pause after it, of all devices.
    let mut pauses = vec![Vec::new(); ATTEMPTS - 1];
    for (_edge, push, times) in &mut devices {
        let times = tokio::time::timeout(PATIENCE, times).await.unwrap().unwrap();
        for (pauses, pair) in pauses.iter_mut().zip(times.windows(2)) {
            pauses.push((pair[1] - pair[0]).as_secs_f64());
        }
        assert!(push.wait(PATIENCE).await.success(), "{}", push.stderr());
        assert!(push.stdout().starts_with("stored"), "{}", push.stdout());
    }
    assert_eq!(server.uploads("demo").await.len(), DEVICES);
    // Ceilings that are four times as high: half of that is left where an attempt itself takes its time, or chance has it so.
    for (before, after) in pauses.iter().zip(&pauses[2..]) {
        assert!(mean(after) > 1.5 * mean(before), "{pauses:.2?}");
    }
    assert!(mean(&pauses[4]) > 4.0 * mean(&pauses[0]), "{pauses:.2?}");
    // A random part of the ceiling, from nothing to all of it.
    for pauses in &pauses[2..] {
        let (least, most) =
            pauses.iter().fold((f64::MAX, 0.0_f64), |(a, b), pause| (a.min(*pause), b.max(*pause)));
        assert!(most > 2.0 * least, "{pauses:.2?}");
    }
}
