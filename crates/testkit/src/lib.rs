//! castor-testkit
