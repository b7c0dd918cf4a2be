//! castor-client
