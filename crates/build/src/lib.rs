//! castor-build
