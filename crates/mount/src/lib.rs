//! castor-mount
