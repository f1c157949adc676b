// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Config is what an image says about running it, as in the OCI image
// specification. It was checked: no NUL bytes, KEY=value in Env, bounded in all by 1 MiB.
type Config struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	// Env holds "KEY=value", in the image's order.
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	// User is "", "user", "uid", "user:group", "uid:gid" or a mix.
	User string `json:"user,omitempty"`
	// StopSignal is "", a name with or without SIG, or a number.
	StopSignal string `json:"stopSignal,omitempty"`
	// Volumes are the paths the image declares as volumes, sorted.
	Volumes []string `json:"volumes,omitempty"`
	// ExposedPorts as in "8080/tcp", sorted.
	ExposedPorts []string          `json:"exposedPorts,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// ociConfig is the part of an image's configuration file that we read.
type ociConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Config       struct {
		Entrypoint   []string
		Cmd          []string
		Env          []string
		WorkingDir   string
		User         string
		StopSignal   string
		Volumes      map[string]struct{}
		ExposedPorts map[string]struct{}
		Labels       map[string]string
	} `json:"config"`
}

// decodeConfig reads an image's configuration and its platform. Errors are
// ErrCorrupt.
func decodeConfig(b []byte) (cfg Config, os, arch string, err error) {
	if len(b) > maxConfigBytes {
		return Config{}, "", "", corrupt("configuration has %d bytes, want at most %d", len(b), maxConfigBytes)
	}
	var f ociConfig
	if err := json.Unmarshal(b, &f); err != nil {
		return Config{}, "", "", corrupt("decode configuration: %w", err)
	}
	cfg = Config{
		Entrypoint:   f.Config.Entrypoint,
		Cmd:          f.Config.Cmd,
		Env:          f.Config.Env,
		WorkingDir:   f.Config.WorkingDir,
		User:         f.Config.User,
		StopSignal:   f.Config.StopSignal,
		Volumes:      slices.Sorted(maps.Keys(f.Config.Volumes)),
		ExposedPorts: slices.Sorted(maps.Keys(f.Config.ExposedPorts)),
		Labels:       f.Config.Labels,
	}
	if err := cfg.check(); err != nil {
		return Config{}, "", "", corrupt("configuration: %w", err)
	}
	return cfg, f.OS, f.Architecture, nil
}

func (c *Config) check() error {
	texts := []string{c.WorkingDir, c.User, c.StopSignal}
	for _, l := range [][]string{c.Entrypoint, c.Cmd, c.Env, c.Volumes, c.ExposedPorts} {
		texts = append(texts, l...)
	}
	for _, t := range texts {
		if strings.IndexByte(t, 0) >= 0 {
			return fmt.Errorf("%.64q contains a NUL byte", t)
		}
	}
	for _, e := range c.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return fmt.Errorf("environment entry %.64q is not KEY=value", e)
		}
	}
	return nil
}
