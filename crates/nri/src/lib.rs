//! NRI plugins: registration, hooks, adjustments.
