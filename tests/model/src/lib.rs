//! The protocol of moves and take-overs as a model, small enough to look at every run of it.
//!
//! ```text
//!  world ──▶ protocol ──▶ (step, world) ...      who may do what next; each rule of it has a switch
//!    ▲                          │
//!    └── check ◀── canonical ───┘                breadth first, until there is nothing new or something is broken
//! ```
//!
//! One part (a module), three hosts, one log, which is an atomic register as consensus promises. A host knows the log as
//! it was at some time, and skips versions. Proposals stay under way and commit late, or never; so do the final part of
//! the state and the word that it was installed. A host pauses wherever it likes, since nothing says when its next step
//! comes. Time is not a number: a lease holds or has ended, and the leader waits for longer than the holder believes.
//!
//! **What is checked.** In every state that can be reached: I1, one owner per epoch; I2, no two hosts admit calls; I3,
//! what was answered is in what is served, unless a take-over of an `ephemeral` module lies between; I4, no call has its
//! effect twice; I5, no reply leaves a host that was taken over from, and no caller takes an answer from before a
//! take-over after one from behind it; I6, no write below the store's fence; I9, nothing is opened but what the record
//! names. And from each of these states one can be reached in which the owner serves, without a fault to help.
//!
//! That the log is one register, and that a leader which was replaced grants nothing, rests on who votes: [`voters`] is a
//! model of that, which the same checker looks at.
//!
//! **Why a search of its own.** The last property is "always, possibly": it takes the edges backwards from the good
//! states. The checker that Rust has, stateright, keeps 64-bit fingerprints of states and checks `always` and, with known
//! gaps where paths meet, `eventually`; neither is that property, and it brings an HTTP server and forty crates. The
//! search here is a page, keeps the states themselves, so that none is taken for another, and prints the shortest way.
//!
//! **Why it does not run the node's code.** `handoff::core` and `placement::state` have names, text, many modules and
//! numbers that grow for ever; a state of theirs is kilobytes, and never comes twice. The README says which function is
//! which step. That they do the same is what the node's own tests and the simulation check.

pub mod check;
pub mod configuration;
pub mod protocol;
pub mod rule;
pub mod step;
pub mod voters;
pub mod world;
