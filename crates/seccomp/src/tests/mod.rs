//! The compiler against an interpreter and a plain reading of the profile.

mod equivalence;
mod errors;
mod interpreter;
mod kernel;
mod naive;
mod profiles;
