#!/bin/sh
# Builds the TensorRT engine on the GPU that the container got, then runs deploykit with the arguments.
#
# Only for the commands that time or check an engine; and `deploykit build` itself leaves an engine alone that fits this
# machine, so that with build/ on a volume only the first start takes the time.
#
#   DEPLOYKIT_ARTIFACT   the ONNX file to build from; default: the newest one in build/, exported first where there is none
#   DEPLOYKIT_PRECISION  fp32, fp16, bf16 or int8; default: fp16
#   DEPLOYKIT_SHAPES     the shape profile, as --shapes takes it; default: from the model's dims
set -eu

case "${1:-}" in
    bench | validate) ;;
    *) exec deploykit "$@" ;;
esac

if [ -z "${DEPLOYKIT_ARTIFACT:-}" ] && [ -z "$(find build -name '*.onnx' 2>/dev/null | head -n 1)" ]; then
    deploykit export
fi
deploykit build ${DEPLOYKIT_ARTIFACT:+"$DEPLOYKIT_ARTIFACT"} --precision "${DEPLOYKIT_PRECISION:-fp16}" \
    ${DEPLOYKIT_SHAPES:+--shapes "$DEPLOYKIT_SHAPES"}
exec deploykit "$@"
