//! `cargo +nightly fuzz run safetensors_header`: no panic, and what is accepted lies in the data and covers it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use modelopt_rs::files::safetensors::parse_header;

const MAX_TENSORS: usize = 1000;

fuzz_target!(|input: (u16, &[u8])| {
    let (data_len, json) = input;
    let Ok(header) = parse_header(json, u64::from(data_len), MAX_TENSORS) else {
        return;
    };
    assert!(header.tensors.len() <= MAX_TENSORS);
    let mut end = 0;
    for tensor in &header.tensors {
        assert_eq!(tensor.begin, end);
        assert!(tensor.end >= tensor.begin);
        end = tensor.end;
    }
    assert_eq!(end, u64::from(data_len));
});
