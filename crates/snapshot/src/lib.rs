//! castor-snapshot
