"""The codegen package: see ARCHITECTURE.md."""
