//! The program of the README is this one, and it works.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use hello::{HelloRequest, greeter_client::GreeterClient};

#[test]
fn the_readme_shows_this_program() {
    let program = include_str!("../src/main.rs");
    let (_, program) = program.split_once("\n\n").unwrap();
    let readme = include_str!("../../../README.md");
    assert!(readme.contains(program), "README.md does not hold examples/hello/src/main.rs as it is");
    let lines = program.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines < 20, "{lines} lines");
}

#[tokio::test]
async fn it_greets() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_hello"))
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--cluster-listen",
            "127.0.0.1:0",
            "--set",
            "log.format=json",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(process.stderr.take().unwrap());
    let address = log
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("\"ingress\":\"")?.1.split_once('"')?.0.to_owned()))
        .expect("the log tells the address once it serves");

    let mut client = GreeterClient::connect(format!("http://{address}")).await.unwrap();
    let reply = client.say_hello(HelloRequest { name: "Ferris".to_owned() }).await.unwrap();
    assert_eq!(reply.into_inner().message, "Hello Ferris!");
    process.kill().unwrap();
    process.wait().unwrap();
}
