//! What a failed round leaves for people to look at.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::options::Options;

/// Keeps the daemon's log of a failed round, and says where.
pub(crate) fn keep(options: &Options, round: &str, log: &Path) -> Result<()> {
    let Some(folder) = &options.logs else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    let name: String = round
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let kept = folder.join(format!("{name}.log"));
    std::fs::copy(log, &kept).with_context(|| format!("keep {}", kept.display()))?;
    eprintln!("its log: {}", kept.display());
    Ok(())
}
