//! castor-registry
