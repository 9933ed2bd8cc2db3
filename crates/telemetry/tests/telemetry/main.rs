//! What is exported, to collectors of several minds.

#[cfg(test)]
mod export;
