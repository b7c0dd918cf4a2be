//! castor-session
