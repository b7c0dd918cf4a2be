//! castor-archive
