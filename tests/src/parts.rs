//! A hundred modules, each with a service and a state of its own: for what takes all of a node's modules.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use outpost::{App, BoxError, Json, Module, State};
use tonic::{body::Body, server::NamedService};

/// How many there are.
pub const PARTS: usize = 100;

const NAMES: [&str; PARTS] = [
    "parts.v1.P00",
    "parts.v1.P01",
    "parts.v1.P02",
    "parts.v1.P03",
    "parts.v1.P04",
    "parts.v1.P05",
    "parts.v1.P06",
    "parts.v1.P07",
    "parts.v1.P08",
    "parts.v1.P09",
    "parts.v1.P10",
    "parts.v1.P11",
    "parts.v1.P12",
    "parts.v1.P13",
    "parts.v1.P14",
    "parts.v1.P15",
    "parts.v1.P16",
    "parts.v1.P17",
    "parts.v1.P18",
    "parts.v1.P19",
    "parts.v1.P20",
    "parts.v1.P21",
    "parts.v1.P22",
    "parts.v1.P23",
    "parts.v1.P24",
    "parts.v1.P25",
    "parts.v1.P26",
    "parts.v1.P27",
    "parts.v1.P28",
    "parts.v1.P29",
    "parts.v1.P30",
    "parts.v1.P31",
    "parts.v1.P32",
    "parts.v1.P33",
    "parts.v1.P34",
    "parts.v1.P35",
    "parts.v1.P36",
    "parts.v1.P37",
    "parts.v1.P38",
    "parts.v1.P39",
    "parts.v1.P40",
    "parts.v1.P41",
    "parts.v1.P42",
    "parts.v1.P43",
    "parts.v1.P44",
    "parts.v1.P45",
    "parts.v1.P46",
    "parts.v1.P47",
    "parts.v1.P48",
    "parts.v1.P49",
    "parts.v1.P50",
    "parts.v1.P51",
    "parts.v1.P52",
    "parts.v1.P53",
    "parts.v1.P54",
    "parts.v1.P55",
    "parts.v1.P56",
    "parts.v1.P57",
    "parts.v1.P58",
    "parts.v1.P59",
    "parts.v1.P60",
    "parts.v1.P61",
    "parts.v1.P62",
    "parts.v1.P63",
    "parts.v1.P64",
    "parts.v1.P65",
    "parts.v1.P66",
    "parts.v1.P67",
    "parts.v1.P68",
    "parts.v1.P69",
    "parts.v1.P70",
    "parts.v1.P71",
    "parts.v1.P72",
    "parts.v1.P73",
    "parts.v1.P74",
    "parts.v1.P75",
    "parts.v1.P76",
    "parts.v1.P77",
    "parts.v1.P78",
    "parts.v1.P79",
    "parts.v1.P80",
    "parts.v1.P81",
    "parts.v1.P82",
    "parts.v1.P83",
    "parts.v1.P84",
    "parts.v1.P85",
    "parts.v1.P86",
    "parts.v1.P87",
    "parts.v1.P88",
    "parts.v1.P89",
    "parts.v1.P90",
    "parts.v1.P91",
    "parts.v1.P92",
    "parts.v1.P93",
    "parts.v1.P94",
    "parts.v1.P95",
    "parts.v1.P96",
    "parts.v1.P97",
    "parts.v1.P98",
    "parts.v1.P99",
];

/// The service with this number: answers every call with an empty message, and counts it.
#[derive(Clone)]
struct Part<const N: usize>(State<Json<u64>>);

impl<const N: usize> NamedService for Part<N> {
    const NAME: &'static str = NAMES[N];
}

impl<const N: usize> tower_service::Service<http::Request<Body>> for Part<N> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        *self.0.write() += 1;
        ready(Ok(tonic::Status::ok("").into_http()))
    }
}

fn part<const N: usize>(app: App) -> App {
    let new = |state: State<Json<u64>>| async move { Ok::<_, BoxError>(Part::<N>(state)) };
    app.with(Module::new(&format!("p{N:02}"), new))
}

/// A program of them: `p00` to `p99`.
#[must_use]
pub fn app() -> App {
    macro_rules! parts {
        ($($number:literal)*) => {{
            let app = App::new("parts", "1.0.0");
            $(let app = part::<$number>(app);)*
            app
        }};
    }
    parts!(
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99
    )
}
