//! What the control plane says to this process.
