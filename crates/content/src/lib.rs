//! castor-content
