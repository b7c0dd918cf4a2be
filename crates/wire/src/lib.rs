//! castor-wire
