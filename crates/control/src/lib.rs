//! castor-control
