// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The states of a result.
const (
	statePassed   = "passed"
	stateFailed   = "failed"
	stateSkipped  = "skipped"
	stateExcluded = "excluded"
)

// baseline is what a total has to be read against: so many of the default specs assert only
// what the API server does. Measured with a node that accepts pods and runs none.
const baseline = "a node that runs nothing passes 23 of 139 of sig-node's default specs"

// spec is a spec of the test binary.
type spec struct{ Name string }

// has tells whether the spec's name carries a tag. Its group is one.
func (s spec) has(tag string) bool { return strings.Contains(s.Name, "["+tag+"]") }

// result is what became of a spec.
type result struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// Reason of a failure or of a skip.
	Reason  string  `json:"reason,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

// summary is the machine-readable outcome of a run.
type summary struct {
	Release string `json:"release"`
	// Selection says which specs were asked for.
	Selection string   `json:"selection"`
	Baseline  string   `json:"baseline"`
	Passed    int      `json:"passed"`
	Failed    int      `json:"failed"`
	Skipped   int      `json:"skipped"`
	Excluded  int      `json:"excluded"`
	Seconds   float64  `json:"seconds"`
	Specs     []result `json:"specs"`
}

// suiteReport is as much as is needed of a suite in ginkgo's JSON report.
type suiteReport struct {
	SuiteDescription           string
	SpecialSuiteFailureReasons []string
	SpecReports                []specReport
}

type specReport struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	RunTime                 time.Duration
	Failure                 *struct{ Message, ForwardedPanic string }
	// CapturedGinkgoWriterOutput is the spec's log.
	CapturedGinkgoWriterOutput string
}

func (r specReport) name() string {
	texts := append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText)
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), " ")
}

// parseReport reads ginkgo's JSON report.
func parseReport(content []byte) (suiteReport, error) {
	var suites []suiteReport
	if err := json.Unmarshal(content, &suites); err != nil {
		return suiteReport{}, fmt.Errorf("read ginkgo's report: %w", err)
	}
	if len(suites) != 1 {
		return suiteReport{}, fmt.Errorf("ginkgo's report has %d suites, want 1", len(suites))
	}
	return suites[0], nil
}

// specs are all specs of the suite, in the order of their names.
func (r suiteReport) specs() []spec {
	var all []spec
	for _, s := range r.SpecReports {
		if s.LeafNodeType == "It" {
			all = append(all, spec{s.name()})
		}
	}
	slices.SortFunc(all, func(a, b spec) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// results are what became of the specs that should have run. The error tells what ended the
// suite beside them; specs that it did not get to are failed, never lost.
func (r suiteReport) results(ran []spec) ([]result, error) {
	byName := map[string]specReport{}
	var errs []error
	for _, s := range r.SpecReports {
		if s.LeafNodeType == "It" {
			byName[s.name()] = s
		} else if state, reason := s.outcome(); state == stateFailed {
			errs = append(errs, fmt.Errorf("%s: %s", s.LeafNodeType, reason))
		}
	}
	for _, reason := range r.SpecialSuiteFailureReasons {
		if !strings.HasPrefix(reason, "Detected ") { // such as programmatic focus, which does not concern us
			errs = append(errs, errors.New(reason))
		}
	}
	all := make([]result, 0, len(ran))
	for _, s := range ran {
		state, reason := stateFailed, "it was not run: the suite ended before"
		report, ok := byName[s.Name]
		if ok && (report.State != "skipped" || report.message() != "") {
			state, reason = report.outcome()
		}
		all = append(all, result{Name: s.Name, State: state, Reason: reason, Seconds: report.RunTime.Round(time.Millisecond).Seconds()})
	}
	return all, errors.Join(errs...)
}

// outcome of a spec or another node that ginkgo ran.
func (r specReport) outcome() (state, reason string) {
	switch r.State {
	case "passed":
		return statePassed, ""
	case "skipped", "pending":
		return stateSkipped, r.message()
	default: // failed, panicked, interrupted, timedout, aborted
		reason = r.message()
		if r.State != "failed" {
			reason = strings.TrimSpace(r.State + ": " + reason)
		}
		if told := r.events(); told != "" {
			reason += "; events: " + told
		}
		return stateFailed, reason
	}
}

// event is a line with which a failed spec tells of an event in its namespace.
var event = regexp.MustCompile(`event for \S+: \{[^}]*\} (\S*(?:Fail|Back|Unhealthy|Kill|Evict|Err|Unsupp|Preempt|Node)\S*: .+)`)

// events are the last few events of trouble in the spec's namespace, each once: they often say
// why, where the failure says only what.
func (r specReport) events() string {
	var told []string
	for _, m := range event.FindAllStringSubmatch(r.CapturedGinkgoWriterOutput, -1) {
		if text := clip(m[1], 300); !slices.Contains(told, text) {
			told = append(told, text)
		}
	}
	const most = 4
	return strings.Join(told[max(0, len(told)-most):], " | ")
}

// message is what the spec said when it ended, on one line.
func (r specReport) message() string {
	if r.Failure == nil {
		return ""
	}
	text := r.Failure.Message
	if r.Failure.ForwardedPanic != "" {
		text += ": " + r.Failure.ForwardedPanic
	}
	return clip(text, 600)
}

// clip puts a text on one line of a bounded length.
func clip(text string, limit int) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + " ..."
	}
	return text
}

// summarize counts.
func summarize(release, selection string, took time.Duration, results []result) summary {
	s := summary{Release: release, Selection: selection, Baseline: baseline, Seconds: took.Round(time.Second).Seconds(), Specs: results}
	slices.SortStableFunc(s.Specs, func(a, b result) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range results {
		switch r.State {
		case statePassed:
			s.Passed++
		case stateFailed:
			s.Failed++
		case stateExcluded:
			s.Excluded++
		default:
			s.Skipped++
		}
	}
	return s
}

// print writes the summary for a person: the reasons first, the totals last.
func (s summary) print(out io.Writer) error {
	var b strings.Builder
	for _, state := range []string{stateExcluded, stateSkipped, stateFailed} {
		for _, r := range s.Specs {
			if r.State == state {
				fmt.Fprintf(&b, "%-8s  %s\n          %s\n", state, r.Name, r.Reason)
			}
		}
	}
	fmt.Fprintf(&b, "\nKubernetes %s, %s: %d passed, %d failed, %d skipped, %d excluded, in %s\n",
		s.Release, s.Selection, s.Passed, s.Failed, s.Skipped, s.Excluded, time.Duration(s.Seconds)*time.Second)
	fmt.Fprintf(&b, "Baseline: %s.\n", s.Baseline)
	_, err := io.WriteString(out, b.String())
	return err
}
