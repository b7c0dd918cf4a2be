//! castor-ops
