//! What is told about the comparison of the replicas.

use trilith_engine::ScrubNews;

/// A line of the log for each thing found, and for the beginning and the end.
pub(super) fn log(news: ScrubNews) {
    match news {
        ScrubNews::Started => tracing::info!("compares the replicas"),
        ScrubNews::Differs(difference) => {
            let offset = difference.range.start.byte_offset();
            let bytes = difference.range.bytes();
            if difference.odd.is_empty() {
                tracing::error!(
                    offset,
                    bytes,
                    "replicas differ and no majority agrees: left as they are"
                );
            } else {
                let replicas: Vec<usize> = difference.odd.iter().map(|m| m.index()).collect();
                tracing::warn!(
                    offset,
                    bytes,
                    ?replicas,
                    "these replicas differ from a majority: written again"
                );
            }
        }
        ScrubNews::Finished(result) => tracing::info!(
            bytes = result.bytes,
            differences = result.differences,
            repaired = result.repaired,
            unresolved = result.unresolved,
            skipped = result.skipped,
            "has compared the replicas"
        ),
    }
}
