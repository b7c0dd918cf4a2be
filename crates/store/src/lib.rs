//! castor-store
