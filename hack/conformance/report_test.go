// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample is a report as ginkgo writes it, with what is not read left out.
const sample = `[{"SuiteDescription": "Kubernetes e2e suite", "SuiteSucceeded": false,
"SpecialSuiteFailureReasons": ["Suite Timeout Elapsed"],
"SpecReports": [
 {"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "passed"},
 {"ContainerHierarchyTexts": ["[sig-node] Pods", "inner"], "LeafNodeType": "It", "LeafNodeText": "run", "State": "passed", "RunTime": 1500000000},
 {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "fail", "State": "failed", "RunTime": 2000000000,
  "Failure": {"Message": "wait:\n   timed\tout"}},
 {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "panic", "State": "panicked",
  "CapturedGinkgoWriterOutput": "I1 At 1 - event for p: {kubelet n} Failed: no image\nAt 2 - event for p: {kubelet n} Started: it\nAt 3 - event for p: {kubelet n} Failed: no image\n",
  "Failure": {"Message": "Test Panicked", "ForwardedPanic": "nil map"}},
 {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "skip", "State": "skipped",
  "Failure": {"Message": "Only supported on Windows"}},
 {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "unreached", "State": "skipped"},
 {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "out of focus", "State": "skipped"},
 {"ContainerHierarchyTexts": null, "LeafNodeType": "ReportAfterSuite", "LeafNodeText": "report", "State": "failed",
  "Failure": {"Message": "no space"}}
]}]`

func TestReport(t *testing.T) {
	report, err := parseReport([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if got := report.specs(); len(got) != 6 || got[0].Name != "[sig-node] Pods fail" || got[1].Name != "[sig-node] Pods inner run" {
		t.Errorf("specs: %v", got)
	}
	ran := []spec{{"[sig-node] Pods inner run"}, {"[sig-node] Pods fail"}, {"[sig-node] Pods panic"}, {"[sig-node] Pods skip"}, {"[sig-node] Pods unreached"}, {"[sig-node] Pods lost"}}
	got, err := report.results(ran)
	if err == nil || !strings.Contains(err.Error(), "Suite Timeout Elapsed") || !strings.Contains(err.Error(), "ReportAfterSuite: no space") {
		t.Errorf("the end of the suite: %v", err)
	}
	want := []result{
		{Name: "[sig-node] Pods inner run", State: statePassed, Seconds: 1.5},
		{Name: "[sig-node] Pods fail", State: stateFailed, Reason: "wait: timed out", Seconds: 2},
		{Name: "[sig-node] Pods panic", State: stateFailed, Reason: "panicked: Test Panicked: nil map; events: Failed: no image"},
		{Name: "[sig-node] Pods skip", State: stateSkipped, Reason: "Only supported on Windows"},
		{Name: "[sig-node] Pods unreached", State: stateFailed, Reason: "it was not run: the suite ended before"},
		{Name: "[sig-node] Pods lost", State: stateFailed, Reason: "it was not run: the suite ended before"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("results (-want +got):\n%s", d)
	}

	s := summarize("v1.2.3", "[sig-node] specs that match Pods", 90*time.Second, append(got, result{Name: "[sig-node] Host", State: stateExcluded, Reason: "no host"}))
	if s.Passed != 1 || s.Failed != 4 || s.Skipped != 1 || s.Excluded != 1 || s.Specs[0].Name != "[sig-node] Host" {
		t.Errorf("summary: %+v", s)
	}
	var out bytes.Buffer
	if err := s.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"excluded  [sig-node] Host\n          no host\n",
		"skipped   [sig-node] Pods skip\n          Only supported on Windows\n",
		"failed    [sig-node] Pods fail\n          wait: timed out\n",
		"Kubernetes v1.2.3, [sig-node] specs that match Pods: 1 passed, 4 failed, 1 skipped, 1 excluded, in 1m30s\n",
		"Baseline: a node that runs nothing passes 23 of 139",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("%q is missing in:\n%s", line, &out)
		}
	}
}

func TestReportOfNothing(t *testing.T) {
	for _, content := range []string{"", "{", "[]", "[{},{}]"} {
		if _, err := parseReport([]byte(content)); err == nil {
			t.Errorf("%q was taken for a report", content)
		}
	}
}

func TestLongMessage(t *testing.T) {
	r := specReport{State: "failed", Failure: &struct{ Message, ForwardedPanic string }{Message: strings.Repeat("é", 1000)}}
	if _, reason := r.outcome(); len(reason) > 700 || !strings.HasSuffix(reason, "é ...") {
		t.Errorf("%d bytes: %q", len(reason), reason)
	}
}

func TestProgress(t *testing.T) {
	var log, out bytes.Buffer
	w := &progressWriter{log: &log, out: &out}
	const text = "noise\n• [12.345 seconds]\n[sig-node] Pods run\n• not an end\n• [FAILED] [0.500 seconds]\n[sig-node] Pods [It] fail [Tag] [sig-node, Tag]\nS [SKIPPED] [0.100 seconds]\n[sig-node] Pods skip\n"
	for part := range strings.SplitSeq(text, "seconds") { // lines in pieces
		for _, b := range []string{part, "seconds"} {
			if _, err := w.Write([]byte(b)); err != nil {
				t.Fatal(err)
			}
		}
	}
	const want = "   1 passed   12.345s [sig-node] Pods run\n   2 FAILED    0.500s [sig-node] Pods fail [Tag]\n   3 SKIPPED   0.100s [sig-node] Pods skip\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if !strings.HasPrefix(log.String(), text) {
		t.Errorf("the log has %q", log.String())
	}
}
