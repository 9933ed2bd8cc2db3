//! The client against registries that behave, misbehave, and try to learn secrets.

#[cfg(test)]
mod auth;
#[cfg(test)]
mod blob;
#[cfg(test)]
mod debian;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod manifest;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod redirect;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tls;
