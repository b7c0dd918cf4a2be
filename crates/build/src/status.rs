//! Progress on the wire.

use castor_progress::{Event, Range, Timestamp};
use castor_proto::{control, pb};

/// Logs and quoted files of one message, in bytes: beyond it another message is begun, so that none outgrows the limit of
/// clients.
const MESSAGE_BYTES: usize = 1 << 20;

/// Events as the messages of a status stream, in order.
pub fn messages(events: Vec<Event>) -> Vec<control::StatusResponse> {
    let mut messages = Vec::new();
    let mut message = control::StatusResponse::default();
    let mut carried = 0;
    for event in events {
        let size = match &event {
            Event::Log(log) => log.data.len(),
            // Every warning quotes the whole file that it is about.
            Event::Warning(warning) => warning.source.as_ref().map_or(0, |source| source.data.len()),
            Event::Vertex(_) | Event::Status(_) => 0,
        };
        if carried > 0 && carried + size > MESSAGE_BYTES {
            messages.push(std::mem::take(&mut message));
            carried = 0;
        }
        carried += size;
        match event {
            Event::Vertex(vertex) => message.vertexes.push(control::Vertex {
                digest: vertex.digest.map(|digest| digest.to_string()).unwrap_or_default(),
                inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
                name: vertex.name,
                cached: vertex.cached,
                started: vertex.started.map(timestamp),
                completed: vertex.completed.map(timestamp),
                error: vertex.error,
                progress_group: vertex.group.map(|group| pb::ProgressGroup {
                    id: group.id,
                    name: group.name,
                    weak: group.weak,
                }),
            }),
            Event::Status(status) => message.statuses.push(control::VertexStatus {
                id: status.id,
                vertex: status.vertex.to_string(),
                name: status.name,
                current: status.current,
                total: status.total,
                timestamp: Some(timestamp(status.timestamp)),
                started: status.started.map(timestamp),
                completed: status.completed.map(timestamp),
            }),
            Event::Log(log) => message.logs.push(control::VertexLog {
                vertex: log.vertex.to_string(),
                timestamp: Some(timestamp(log.timestamp)),
                stream: log.stream,
                msg: log.data,
            }),
            Event::Warning(warning) => message.warnings.push(control::VertexWarning {
                vertex: warning.vertex.to_string(),
                level: warning.level,
                short: warning.short,
                detail: warning.detail,
                url: warning.url,
                info: warning.source.map(|source| pb::SourceInfo {
                    filename: source.filename,
                    data: source.data,
                    definition: None,
                    language: source.language,
                }),
                ranges: warning.ranges.into_iter().map(range).collect(),
            }),
        }
    }
    messages.push(message);
    messages
}

/// A time on the wire.
pub fn timestamp(time: Timestamp) -> castor_proto::Timestamp {
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    // Nanoseconds on the wire count forward from the second, also before 1970.
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    castor_proto::Timestamp { seconds, nanos }
}

fn range(range: Range) -> pb::Range {
    let position = |(line, character)| Some(pb::Position { line, character });
    pb::Range { start: position(range.start), end: position(range.end) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_oci::Digest;
    use castor_progress::Log;

    #[test]
    fn large_logs_are_split_and_keep_their_order() {
        let log = |byte: u8| {
            let data = vec![byte; MESSAGE_BYTES / 2 + 1].into();
            Event::Log(Log { vertex: Digest::of("v"), stream: 1, data, timestamp: Timestamp::now() })
        };
        let messages = messages(vec![log(1), log(2), log(3)]);
        let order: Vec<u8> = messages.iter().flat_map(|m| m.logs.iter().map(|log| log.msg[0])).collect();
        assert_eq!((messages.len(), order), (3, vec![1, 2, 3]));
    }

    #[test]
    fn times_before_the_epoch_count_nanoseconds_forward() {
        let time = Timestamp::new(-1, -500_000_000).unwrap();
        assert_eq!(timestamp(time), castor_proto::Timestamp { seconds: -2, nanos: 500_000_000 });
    }
}
