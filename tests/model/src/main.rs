//! Checks the protocol from the command line; what it finds goes to stdout.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a tool that prints, and measures how long it takes"
)]

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use outpost_model::{
    check::Wrong,
    configuration::{ALL, Configuration, Outcome, Subject},
    rule::{Rule, Rules},
};

/// Looks at every state that moves and take-overs can get into, and says whether any of them is wrong.
#[derive(Debug, Parser)]
#[command(name = "outpost-model")]
struct Args {
    /// Which configurations; all but the slow ones if none is named.
    #[arg(value_name = "CONFIGURATION")]
    configurations: Vec<String>,
    /// The slow ones, too.
    #[arg(long)]
    slow: bool,
    /// Switch a rule off, and show what goes wrong; without a configuration, in one where something does.
    #[arg(long, value_name = "RULE", hide_possible_values = true)]
    without: Vec<Rule>,
    /// Switch each rule off, one at a time, and show how each is missed.
    #[arg(long, conflicts_with_all = ["without", "configurations"])]
    each_rule: bool,
    /// Names the configurations and the rules.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    if args.each_rule {
        let found = Rule::all().iter().filter(|rule| run(&rule.name(), &rule.missed_in(), false)).count();
        println!("{found} of {} rules are missed when they are off", Rule::all().len());
        return if found == Rule::all().len() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let ([], [rule]) = (&*args.configurations, &*args.without) {
        run(&format!("without {}", rule.name()), &rule.missed_in(), true);
        return ExitCode::FAILURE;
    }
    let mut chosen: Vec<&Configuration> = Vec::new();
    for name in &args.configurations {
        let Some(configuration) = Configuration::named(name) else {
            println!("there is no configuration `{name}`; --list names those that there are");
            return ExitCode::from(2);
        };
        chosen.push(configuration);
    }
    if chosen.is_empty() {
        chosen = ALL.iter().filter(|configuration| args.slow || !configuration.slow).collect();
    }
    let mut wrong = false;
    for configuration in chosen {
        let rules = args.without.iter().fold(Rules::ALL, |rules, rule| rules.without(*rule));
        wrong |= run(configuration.name, &configuration.subject.with(rules), true);
    }
    if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn list() {
    println!("Configurations:");
    for Configuration { name, about, slow, .. } in ALL {
        println!("  {name:<18} {about}{}", if *slow { " (slow)" } else { "" });
    }
    println!("\nRules:");
    for rule in Rule::all() {
        println!("  {:<24} {}", rule.name(), rule.text());
    }
}

/// Prints what was found; returns whether anything is wrong.
fn run(name: &str, subject: &Subject, trace: bool) -> bool {
    let began = Instant::now();
    let Outcome { states, depth, wrong, steps, trace: way } = subject.explore();
    let seconds = began.elapsed().as_secs_f64();
    let verdict = match wrong {
        None => format!("nothing is wrong, up to {depth} steps"),
        Some(Wrong::Broken(broken)) => format!("after {steps} steps: {broken}"),
        Some(Wrong::Dead(dead)) => {
            format!("{dead} states from which nothing will ever be well; the first after {steps} steps")
        }
        Some(Wrong::TooMany) => "there are too many states to look at".to_owned(),
    };
    println!("{name:<24} {states:>9} states {seconds:>7.2} s  {verdict}");
    if trace && wrong.is_some() {
        println!("{way}");
    }
    wrong.is_some()
}
