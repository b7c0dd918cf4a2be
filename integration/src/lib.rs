//! castor-integration
