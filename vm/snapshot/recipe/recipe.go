// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package recipe is what is done in a machine before it is saved as a template
// snapshot: a git checkout, set-up and cache-warming commands, a program that keeps
// running, and the proof that it is ready.
package recipe

import (
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// Layer is the name, in the machine, of the writable layer that the commands fill. Containers
// of the template's first image have it below their own.
const Layer = "template"

// ContainerPrefix begins the ids of a recipe's containers in the machine. No pod's has
// it: the names of a pod's containers have no dots.
const ContainerPrefix = guest.TemplatePrefix

// Recipe is pure data; everything in it is from a user.
type Recipe struct {
	// Env of all commands, KEY=value.
	Env []string `json:"env,omitempty"`
	// WorkingDir of commands that have none; empty is "/".
	WorkingDir string    `json:"workingDir,omitempty"`
	Checkout   *Checkout `json:"checkout,omitempty"`
	Setup      []Command `json:"setup,omitempty"`
	WarmCache  []Command `json:"warmCache,omitempty"`
	// Start keeps running.
	Start     *Command   `json:"start,omitempty"`
	Readiness *Readiness `json:"readiness,omitempty"`
	// Timeout of all of it. 0 is 30 minutes.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Command is a program with its arguments.
type Command struct {
	Args       []string `json:"args"`
	WorkingDir string   `json:"workingDir,omitempty"`
}

// Checkout is a git repository at a ref in a directory.
type Checkout struct {
	Repository string `json:"repository"`
	Ref        string `json:"ref"`
	Directory  string `json:"directory"`
}

// Readiness has exactly one of Exec, HTTP and TCP.
type Readiness struct {
	Exec    *Command      `json:"exec,omitempty"`
	HTTP    *HTTP         `json:"http,omitempty"`
	TCP     *TCP          `json:"tcp,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Period  time.Duration `json:"period,omitempty"`
}

// HTTP is a GET on the machine's loopback.
type HTTP struct {
	Port int    `json:"port"`
	Path string `json:"path"`
}

// TCP is a connection on the machine's loopback.
type TCP struct {
	Port int `json:"port"`
}

// Step is a part of a recipe.
type Step string

// The steps, in order. Stable: they appear in statuses.
const (
	// StepPull and StepSave are not a recipe's own, but come before and after it.
	StepPull      Step = "Pull"
	StepSave      Step = "Save"
	StepCheckout  Step = "Checkout"
	StepSetup     Step = "Setup"
	StepWarmCache Step = "WarmCache"
	StepStart     Step = "Start"
	StepReadiness Step = "Readiness"
)

// StepError is a step that failed.
type StepError struct {
	Step Step
	// Index of the command in its step.
	Index int
	// Message says what went wrong, in one line.
	Message string
	// Output is the end of what the command wrote, safe to show: at most 4 KiB.
	Output string
	Err    error
}

// Error is the message with the step.
func (e *StepError) Error() string { return string(e.Step) + ": " + e.Message }

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }
