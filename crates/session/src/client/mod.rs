//! The client's half: services that the daemon calls while it builds.
