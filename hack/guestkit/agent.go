// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime"
)

// cCompiler is the C compiler for the agent: libcontainer has a part in C.
func cCompiler(arch string) string {
	if arch == runtime.GOARCH {
		return "gcc"
	}
	return map[string]string{"amd64": "x86_64-linux-gnu-gcc", "arm64": "aarch64-linux-gnu-gcc"}[arch]
}

// agentEnv is the environment of the agent's build.
func agentEnv(arch, seccomp string) []string {
	cflags, ldflags := seccompFlags(seccomp, arch)
	return []string{
		"GOOS=linux", "GOARCH=" + arch, "CGO_ENABLED=1", "CC=" + cCompiler(arch),
		// The C parts must not depend on the machine's environment either.
		"CGO_CFLAGS=-O2 " + cflags, "CGO_LDFLAGS=" + ldflags, "PKG_CONFIG=" + pkgConfig(seccomp),
	}
}

// buildAgent builds cmd/firkin-agent as a static, stripped binary that does not tell
// where and when it was built. seccomp is what seccompLibrary returned.
func buildAgent(ctx context.Context, arch, path, seccomp string) error {
	err := run(ctx, agentEnv(arch, seccomp), "go", "build", "-o", path, "-trimpath", "-buildvcs=false",
		"-tags", "netgo osusergo runc_nocriu seccomp",
		"-ldflags", "-s -w -buildid= -linkmode=external -extldflags '-static -Wl,--build-id=none'",
		"github.com/vk-firkin/vk-firkin/cmd/firkin-agent")
	if err != nil {
		return fmt.Errorf("build agent: %w", err)
	}
	return nil
}
