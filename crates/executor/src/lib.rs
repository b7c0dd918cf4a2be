//! castor-executor
