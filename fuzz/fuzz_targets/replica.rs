#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let target = cairn_formats::TARGETS.iter().find(|target| target.name == "replica");
    (target.expect("a target of this name").run)(input);
});
