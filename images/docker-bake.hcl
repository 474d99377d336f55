# docker buildx bake --load -f images/docker-bake.hcl          every image, for this machine's processor
# docker buildx bake --load -f images/docker-bake.hcl vllm     one of them
# The version is that of pytest_llem/__init__.py, which .ci/release.py writes here.
variable "VERSION" { default = "0.1.0.dev0" }
variable "REGISTRY" { default = "ghcr.io/pytest-llem" }

group "default" {
  targets = ["transformers", "vllm", "sglang", "tensorrt_llm"]
}

target "_engine" {
  args = { VERSION = VERSION }
}

target "transformers" {
  inherits = ["_engine"]
  context  = "images/transformers"
  tags     = ["${REGISTRY}/transformers:${VERSION}"]
}

target "vllm" {
  inherits = ["_engine"]
  context  = "images/vllm"
  tags     = ["${REGISTRY}/vllm:${VERSION}"]
}

target "sglang" {
  inherits = ["_engine"]
  context  = "images/sglang"
  tags     = ["${REGISTRY}/sglang:${VERSION}"]
}

target "tensorrt_llm" {
  inherits = ["_engine"]
  context  = "images/tensorrt_llm"
  tags     = ["${REGISTRY}/tensorrt_llm:${VERSION}"]
}
