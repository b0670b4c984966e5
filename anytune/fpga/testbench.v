// Sends the packets of in.hex into the engine and compares its sums with out.hex, with stalls at random on both sides.
// Prints PASS or what differs. Plain Verilog-2005: iverilog -o sim anytune_engine.v testbench.v && vvp sim
`timescale 1ns / 1ps
module testbench;
    parameter BEATS_IN = 0, BEATS_OUT = 0, GROUP = 512;
    reg clk = 0, resetn = 0;
    always #4 clk = ~clk;

    reg [63:0] in [0:BEATS_IN - 1];
    reg [63:0] out [0:BEATS_OUT - 1];
    reg s_valid = 0, m_ready = 0, ar_valid = 0;
    reg [63:0] s_data = 0;
    reg [5:0] ar_addr = 0;
    wire s_ready, m_valid, m_last, ar_ready, r_valid;
    wire [63:0] m_data;
    wire [31:0] r_data;
    integer sent = 0, got = 0, wrong = 0, cycles = 0;
    reg [31:0] random = 32'h1234567;

    anytune_engine engine (
        .aclk(clk), .aresetn(resetn),
        .s_axis_tvalid(s_valid), .s_axis_tready(s_ready), .s_axis_tdata(s_data),
        .m_axis_tvalid(m_valid), .m_axis_tready(m_ready), .m_axis_tdata(m_data), .m_axis_tlast(m_last),
        .s_axi_awvalid(1'b0), .s_axi_awready(), .s_axi_awaddr(6'd0), .s_axi_wvalid(1'b0), .s_axi_wready(),
        .s_axi_wdata(32'd0), .s_axi_wstrb(4'd0), .s_axi_bvalid(), .s_axi_bready(1'b1), .s_axi_bresp(),
        .s_axi_arvalid(ar_valid), .s_axi_arready(ar_ready), .s_axi_araddr(ar_addr), .s_axi_rvalid(r_valid),
        .s_axi_rready(1'b1), .s_axi_rdata(r_data), .s_axi_rresp());

    initial begin
        $readmemh("in.hex", in);
        $readmemh("out.hex", out);
        if ($test$plusargs("vcd")) begin
            $dumpfile("testbench.vcd");
            $dumpvars(1, testbench);
        end
        repeat (4) @(negedge clk);
        resetn = 1;
        while (got < BEATS_OUT && wrong < 8 && cycles < 4 * (BEATS_IN + BEATS_OUT) + 2000) begin
            random = random * 32'd1664525 + 32'd1013904223;
            m_ready = random[31:29] != 0;
            if (!s_valid && sent < BEATS_IN && random[28:27] != 0) begin
                s_valid = 1;
                s_data = in[sent];
            end
            #1;
            if (m_valid && m_ready) begin
                if (m_data !== out[got] || m_last !== (got % GROUP == GROUP - 1)) begin
                    if (wrong < 8) $display("beat %0d: %h, not %h (last %b)", got, m_data, out[got], m_last);
                    wrong = wrong + 1;
                end
                got = got + 1;
            end
            if (s_valid && s_ready) sent = sent + 1;
            if (s_valid && s_ready) begin @(posedge clk); #1 s_valid = 0; @(negedge clk); end
            else @(negedge clk);
            cycles = cycles + 1;
        end
        m_ready = 0;
        ar_addr = 0;
        ar_valid = 1;
        @(negedge clk) ar_valid = 0;
        if (r_data !== 32'h414e5945) begin
            $display("the register id is %h", r_data);
            wrong = wrong + 1;
        end
        if (wrong == 0 && got == BEATS_OUT) $display("PASS: %0d beats in %0d cycles", got, cycles);
        else $display("FAIL: %0d of %0d beats came, %0d wrong", got, BEATS_OUT, wrong);
        $finish;
    end
endmodule
