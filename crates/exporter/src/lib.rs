//! castor-exporter
