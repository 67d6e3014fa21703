# shellcheck shell=bash
# The llama.cpp that the engine is made of. Sourced by the other scripts; part
# of the engine's source hash, so a change here asks for a rebuild.
# shellcheck disable=SC2034
LLAMA_TAG=v0.5.0
LLAMA_COMMIT=de3ff815ea7d559ee917f063901b8986f038abc6
LLAMA_TREE=fd570ef54b10ec5fecb739e7e04c8ce44a6f415a # git tree of the release
LLAMA_NPM=node-llama-cpp@3.22.1                     # ships the same release as a git bundle
