//! castor-proto
